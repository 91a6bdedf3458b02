"""Proposers that are no policy, and the settings that choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from arl_core.config import EditSettings
from arl_core.edit import apply_completion
from arl_core.errors import PolicyError
from arl_core.policy import weights
from arl_core.policy.proposers import load_proposer
from arl_core.policy.rollout import Rollout
from arl_core.policy.settings import PolicySettings
from frozen_env.description import built_in
from tasks.patch import patch

SOURCE = (Path(__file__).resolve().parents[3] / "target" / "train.py").read_text(encoding="utf-8")


def proposer(tmp_path: Path, name: str):
    return load_proposer(PolicySettings(proposer=name, choices=2), tmp_path)  # type: ignore[arg-type]


def test_random_edits_apply_and_their_seed_fixes_them(tmp_path: Path) -> None:
    arm = proposer(tmp_path, "random")
    made = [arm.propose("p", SOURCE, seed) for seed in range(40)]
    sources = {apply_completion(SOURCE, rollout.completion).source for rollout in made}
    assert len(sources) > 20, "they differ"
    assert SOURCE not in sources
    assert [arm.propose("p", SOURCE, seed).completion for seed in range(40)] == [one.completion for one in made]


def test_a_source_without_anything_to_edit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="none of 200 random edits"):
        proposer(tmp_path, "random").propose("p", "print(1)\n", 0)


def test_random_edits_with_a_critic_are_several_to_choose_from(tmp_path: Path) -> None:
    arm = load_proposer(PolicySettings(proposer="random_critic", choices=4), tmp_path)
    pools: list[list[Rollout]] = []

    def last_first(pool: list[Rollout], seeds: Sequence[int]) -> list[int]:
        pools.append(pool)
        return list(range(len(pool)))[: -len(seeds) - 1 : -1]

    got = arm.propose_many(["p", "q"], [SOURCE, SOURCE], [1, 2], last_first)
    [pool] = pools
    assert [one.prompt for one in pool] == ["p"] * 4 + ["q"] * 4
    assert len({one.completion for one in pool}) > 4, "each is a draw of its own"
    assert got == [pool[7], pool[6]]
    assert arm.propose("p", SOURCE, 1).completion == pool[0].completion, (
        "without a critic the first, and the same again"
    )
    with pytest.raises(ValueError, match="nothing to choose from"):
        PolicySettings(proposer="random_critic", choices=1)


class Seen:
    def seen(self, *_: object) -> tuple[str, int]:
        return "c", 0


def test_no_edit_runs_the_same_program_again_and_is_no_duplicate(tmp_path: Path) -> None:
    rollout = proposer(tmp_path, "none").propose("p", SOURCE, 0)
    edit = patch.fn(SOURCE, rollout, EditSettings(), Seen(), "c", built_in())  # type: ignore[arg-type, call-arg]
    assert edit.runs
    assert (edit.source, edit.diff) == (SOURCE, "")


@pytest.mark.parametrize("name", ["random", "random_critic", "none"])
def test_they_have_nothing_to_learn_or_keep(tmp_path: Path, name: str) -> None:
    arm = proposer(tmp_path, name)
    assert not PolicySettings(proposer=name, choices=2).learns  # type: ignore[arg-type]
    for act in (lambda: arm.update([], []), lambda: arm.save(tmp_path), lambda: arm.restore(tmp_path)):
        with pytest.raises(PolicyError, match="set policy"):
            act()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("learn", "learns"), [(True, True), (False, False)])
def test_a_policy_learns_unless_it_is_frozen(learn: bool, learns: bool) -> None:
    assert PolicySettings(learn=learn).learns == learns


def test_a_quantised_base_that_cannot_be_loaded_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PolicyError, match="pip install bitsandbytes"):
        weights._quantised(PolicySettings(quantise="4bit"))
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(PolicyError, match="needs a GPU"):
        weights._quantised(PolicySettings(quantise="4bit", device="cpu"))
    assert weights._quantised(PolicySettings()) == {}


def test_quantised_and_offloaded_is_refused() -> None:
    with pytest.raises(ValidationError, match="cannot move to CPU memory"):
        PolicySettings(quantise="8bit", offload=True)
