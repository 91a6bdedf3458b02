"""The replay bench: an honest judge, arms that see only their own trials, results that resume."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arl_core.config import load_config
from arl_core.edit import read_constants
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.policy import choice, critic
from arl_core.records import Experiment, State
from bench.replay import __main__ as replay
from bench.replay import arms
from bench.replay.__main__ import trace_of
from bench.replay.arms import NUMERIC
from bench.replay.language import ROOT, LanguageArm
from bench.replay.space import BASELINE
from bench.replay.surrogate import KINDS, Surrogate
from frozen_env.contract import Status
from tests.bench.conftest import TINY


def test_the_target_of_the_replay_starts_at_the_baseline() -> None:
    source = (ROOT / load_config("replay").source).read_text(encoding="utf-8")
    assert read_constants(source) == BASELINE
    assert list(BASELINE) == list(KINDS)


def test_the_judge_ranks_what_it_was_not_fitted_on_and_reports_it(judge: Surrogate) -> None:
    assert judge.quality.groups == 3
    assert judge.quality.success_auc > 0.95
    assert judge.quality.bpb_rank_correlation > 0.8
    good, bad = {**BASELINE, "MATRIX_LR": 0.02}, {**BASELINE, "MATRIX_LR": 0.15}
    assert judge.true_value(good) < judge.true_value(bad)
    assert judge.true_value({**BASELINE, "DEPTH": 24, "ASPECT_RATIO": 128}) is None


def test_noise_is_added_to_what_an_arm_sees_and_not_to_the_truth(judge: Surrogate) -> None:
    answers = [judge.answer(BASELINE, np.random.default_rng([0, i])) for i in range(200)]
    assert {answer.true_bpb for answer in answers} == {judge.true_value(BASELINE)}
    assert np.std([answer.seen_bpb for answer in answers]) == pytest.approx(0.0005, rel=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"DEPTH": 25}, "DEPTH = 25 is outside the recorded range"),
        ({"DEPTH": 8.5}, "not a whole number"),
        ({"DEPTH": True}, "outside"),
        ({"MATRIX_LR": "fast"}, "outside"),
        ({"WINDOW_PATTERN": "SLLS"}, "never recorded"),
        ({"HEAD_DIM": 96}, "never recorded"),
    ],
)
def test_values_outside_the_recorded_ranges_are_refused(
    judge: Surrogate, change: dict[str, object], words: str
) -> None:
    assert words in judge.space.refuses({**BASELINE, **change})
    assert judge.space.refuses(BASELINE) == ""
    assert "no longer a constant" in judge.space.refuses({k: v for k, v in BASELINE.items() if k != "DEPTH"})


@pytest.mark.parametrize("arm", NUMERIC)
def test_numeric_arms_stay_inside_the_ranges_and_repeat_with_their_seed(judge: Surrogate, arm: str) -> None:
    def walk(seed: int) -> list[dict[str, object]]:
        search = NUMERIC[arm](judge.space, seed)
        settings = [next(search)]
        for i in range(12):
            settings.append(search.send(None if i % 5 == 0 else 1.0 - 0.001 * i))
        return settings

    first = walk(3)
    assert [judge.space.refuses(setting) for setting in first] == [""] * 13
    assert first == walk(3)
    assert first != walk(4)


def test_local_search_keeps_what_looks_better_and_moves_one_to_three_constants(judge: Surrogate) -> None:
    search = NUMERIC["local"](judge.space, 0)
    base = next(search)
    better = search.send(1.0)
    assert 1 <= sum(base[name] != better[name] for name in base) <= 3
    following = search.send(0.9)
    assert sum(better[name] != following[name] for name in base) <= 3
    for _ in range(20):  # worse trials and failures: it stays where it is
        trial = search.send(None)
        assert sum(better[name] != trial[name] for name in base) <= 3


def test_local_critic_runs_what_the_critic_draws_lowest_near_the_incumbent_and_the_critics_favourite(
    judge: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic that likes small warm-ups, with a favourite that is not the incumbent."""
    asked: list[list[dict[str, Any]]] = []

    class Likes(critic.Critic):
        def draw(self, programs: Any, seed: int) -> Any:
            if not self.ready:
                return super().draw(programs, seed)
            asked.append([read_constants(program) for program in programs])
            return np.array([one["WARMDOWN_RATIO"] for one in asked[-1]])

        def predict(self, programs: Any) -> Any:
            values = [read_constants(program)["MATRIX_LR"] for program in programs]
            return np.array(values), np.eye(len(values))

    monkeypatch.setattr(arms, "Critic", Likes)
    search, rng = NUMERIC["local_critic"](judge.space, 0), np.random.default_rng(0)
    trial, told = next(search), list[tuple[float | None, dict[str, Any]]]()
    assert trial == BASELINE
    while len(asked) < 4:
        seen = None if len(told) == 3 else 1.0 + 0.01 * float(rng.random())
        told.append((seen, trial))
        trial = search.send(seen)
    measured = [(value, one) for value, one in told if value is not None]
    best, favourite = (
        min(measured, key=lambda pair: pair[0])[1],
        min(measured, key=lambda pair: pair[1]["MATRIX_LR"])[1],
    )
    assert best != favourite
    pool = asked[0]
    assert len(pool) == arms.POOL
    for parent, part in ((best, pool[::2]), (favourite, pool[1::2])):
        assert all(1 <= sum(one[name] != parent[name] for name in parent) <= 3 for one in part)
    run = [trial] + [search.send(1.0) for _ in range(arms.ROUND - 1)]
    assert run == sorted(pool, key=lambda one: one["WARMDOWN_RATIO"])[: arms.ROUND], "no setting twice"


def test_a_language_arm_runs_the_campaigns_own_parts_and_goes_on_where_it_was_killed(
    judge: Surrogate, tmp_path: Path
) -> None:
    """Twenty simulated minutes with a random model, cut in the middle, equal an arm that was never cut."""

    def arm(folder: Path) -> LanguageArm:
        return LanguageArm(judge, folder, name="rl", seed=1, edits_per_round=2, overrides=TINY)

    whole = arm(tmp_path / "whole").run(0.35)
    arm(tmp_path / "cut").run(0.15)
    resumed = arm(tmp_path / "cut").run(0.35)
    assert [(e.status, e.completion, e.reward) for e in resumed] == [(e.status, e.completion, e.reward) for e in whole]
    assert len(whole) > 3
    assert any(e.extra.get("update") for e in whole)
    assert trace_of(whole, judge)[0][1] == judge.true_value(BASELINE)
    short = arm(tmp_path / "cut").run(0.15)
    assert len(short) < len(whole), "fewer hours are asked for than were run"
    assert [e.completion for e in short] == [e.completion for e in whole[: len(short)]]
    assert sum(e.costs["simulated"] for e in short[:-1]) < 0.15 * 3600 <= sum(e.costs["simulated"] for e in short)
    assert {e.status for e in whole} <= {
        Status.KEPT,
        Status.DISCARDED,
        Status.CRASHED,
        Status.REJECTED,
        Status.DUPLICATE,
    }


def test_a_filter_runs_the_first_new_and_legal_samples_and_learns_nothing(judge: Surrogate, tmp_path: Path) -> None:
    def refused(arm: str) -> tuple[int, int]:
        many = LanguageArm(judge, tmp_path / arm, name=arm, seed=1, edits_per_round=2, overrides=TINY).run(0.5)
        assert not any(one.extra.get("update") for one in many)
        assert {one.parent_index for one in many[1:]} <= {one.index for one in many if one.status is Status.KEPT}
        return sum(one.status in (Status.REJECTED, Status.DUPLICATE) for one in many), len(many)

    (filtered, of), (bare, among) = refused("filter"), refused("greedy")
    assert filtered / of < bare / among


def test_what_is_learned_shows_by_quarter_of_the_proposals() -> None:
    values = [0.99, 0.98, None, 0.98, 0.97, None, None, 0.98, 0.98]
    many = [SimpleNamespace(reward=float(i), value=value) for i, value in enumerate(values)]
    assert replay.by_quarter(many) == {  # type: ignore[arg-type]
        "reward_by_quarter": [1.5, 3.5, 5.5, 7.5],
        "trained_by_quarter": [0.5, 1.0, 0.0, 1.0],
    }
    assert replay.by_quarter(many[:1]) == {"reward_by_quarter": [], "trained_by_quarter": []}  # type: ignore[arg-type]


def test_an_arm_killed_inside_a_round_ends_as_if_it_had_not_been(
    judge: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of four, updates of three: killed in the first round, and after the second update was saved but not committed.

    By turns the incumbent and the critic's favourite are edited, so what waits in a round has parents of its own.
    """
    monkeypatch.setattr(critic, "LEAST", 2)
    monkeypatch.setattr(choice, "favourite", lambda memory, campaign, _critic: memory.experiment(campaign.id, 1))

    def run(folder: str) -> list[Experiment]:
        overrides = {**TINY, "policy.batch_edits": 3, "policy.parents": "by_turns", "policy.prompt_tokens": 1800}
        return LanguageArm(judge, tmp_path / folder, "rl", seed=3, edits_per_round=4, overrides=overrides).run(0.7)

    def seen(experiments: list[Experiment]) -> list[object]:
        updates = [{**one.extra.get("update", {}), "update_seconds": 0} for one in experiments]
        names = ("index", "parent_index", "status", "value", "completion", "reward", "prompt")
        told = [[getattr(one, name) for name in names] for one in experiments]
        return list(zip(told, updates, strict=True))

    whole = run("whole")
    assert len(whole) > 8, "two rounds have ended"
    assert len({one.parent_index for one in whole[5:9]}) == 2, "the second round has two parents"
    commit = Memory.commit_iteration
    for dies_at in (3, 6):
        with monkeypatch.context() as patched:

            def dies(memory: Memory, experiment: Experiment, state: State, at: int = dies_at) -> None:
                if experiment.index == at:
                    raise KeyboardInterrupt
                commit(memory, experiment, state)

            patched.setattr(Memory, "commit_iteration", dies)
            with pytest.raises(KeyboardInterrupt):
                run("killed")
    assert seen(run("killed")) == seen(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overrides": {**TINY, "policy.choices": 2}}, r"policy.choices \(8 there, 2 here\)"),
        ({"edits_per_round": 3}, r"replay.edits_per_round \(2 there, 3 here\)"),
        ({"surrogate": "other trials"}, r"replay.trials \("),
    ],
)
def test_a_run_of_other_settings_or_trials_is_refused(
    judge: Surrogate, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    known: dict[str, Any] = {"surrogate": judge, "name": "rl", "seed": 0, "edits_per_round": 2, "overrides": TINY}
    LanguageArm(folder=tmp_path, **known).run(0.01)
    if "surrogate" in change:
        other = copy.copy(judge)
        other.digest = "0" * 64
        change = {"surrogate": other}
    with pytest.raises(ConfigError, match=rf"{words}.*another folder with --work, or remove"):
        LanguageArm(folder=tmp_path, **known | change).run(0.01)
