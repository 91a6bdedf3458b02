"""Choosing which of several sampled edits are run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arl_core.memory import Memory
from arl_core.policy.choice import Chooser, favourite, fit_critic
from arl_core.policy.critic import Critic
from arl_core.policy.policy import Policy
from arl_core.policy.proposers import in_order
from arl_core.policy.rollout import Rollout
from arl_core.records import Campaign, Experiment, State, source_hash
from frozen_env.contract import Direction
from tests.arl_core.policy.conftest import PROMPT, SOURCE

Load = Callable[..., Policy]


class Likes(Critic):
    """A critic that always likes what stands earlier in its list of programs."""

    def __init__(self, *best_first: str) -> None:
        self.order = best_first

    def draw(self, programs: list[str], seed: int) -> np.ndarray:
        return np.array([float(self.order.index(one)) for one in programs])


def pool(*completions: str) -> list[Rollout]:
    return [Rollout.foreign("prompt", completion, 0) for completion in completions]


def chooser(*best_first: str) -> Chooser:
    """Programs are completions in lower case; those with a ! are invalid or known."""
    return Chooser(lambda r: None if "!" in r.completion else r.completion.lower(), Likes(*best_first))  # type: ignore[arg-type]


def test_the_critics_favourites_are_taken_first_and_each_once() -> None:
    assert chooser("c", "a", "b")(pool("a", "b", "c"), [0, 1]) == [2, 0]


def test_two_edits_that_make_one_program_count_as_one() -> None:
    assert chooser("b", "a")(pool("a", "b", "B"), [0, 1]) == [1, 0]


def test_another_spelling_is_the_same_program() -> None:
    """Novelty goes by the normalised source, so the second of the two would be refused as a duplicate."""
    first, spelled, other = "LR = 0.04\n", "LR = 0.040  # peak\n", "LR = 0.05\n"
    choose = Chooser(lambda rollout: rollout.completion, Likes(first, spelled, other))  # type: ignore[arg-type]
    assert choose(pool(first, spelled, other), [0, 1]) == [0, 2]


def test_edits_that_make_no_new_program_come_last_and_the_same_words_last_of_all() -> None:
    assert chooser("a")(pool("x!", "a", "a", "y!"), [0, 1, 2]) == [1, 0, 3]


def test_as_many_edits_are_chosen_as_are_wanted_even_when_none_is_new() -> None:
    assert sorted(chooser()(pool("x!", "y!"), [0, 1])) == [0, 1]


def test_without_a_critic_each_seed_has_its_own_first_sample() -> None:
    assert in_order(pool(*"abcdef"), [0, 1]) == [0, 3]


def test_the_policy_returns_what_was_chosen_of_its_samples(load: Load) -> None:
    sampled = load().propose_many([PROMPT] * 6, [SOURCE] * 6, range(6, 12))
    seen: list[list[str]] = []

    def last(pool: list[Rollout], seeds: object) -> list[int]:
        seen.append([rollout.completion for rollout in pool])
        return [5, 4]

    chosen = load(choices=3).propose_many([PROMPT] * 2, [SOURCE] * 2, [2, 3], last)
    assert seen == [[rollout.completion for rollout in sampled]]
    assert [rollout.completion for rollout in chosen] == seen[0][:3:-1]


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_the_memorys_critic_prefers_what_was_better_in_the_metrics_direction(
    tmp_path: Path, direction: Direction
) -> None:
    campaign = Campaign("c", "embedded", {}, "digest", 0, "2026-11-25T00:00:00+00:00", "text", direction=direction)
    sign = 1 if direction == "lower" else -1
    with contextlib.closing(Memory(tmp_path / "memory.duckdb")) as memory:
        memory.create_campaign(campaign)
        for index in range(20):
            source = f"LR = {0.01 * 1.3**index}\n"
            # Every third was stopped early: its forecast stands in.
            known = {"estimate": 1.0 + sign * 0.01 * index} if index % 3 == 2 else {"value": 1.0 + sign * 0.01 * index}
            status = "stopped_early" if index % 3 == 2 else "discarded"
            one = Experiment(
                "c", index, status, source=source, source_hash=source_hash(source), direction=direction, **known
            )  # type: ignore[arg-type]
            memory.commit_iteration(one, State())
        memory.commit_iteration(Experiment("c", 20, "rejected", reason="no such line"), State())  # type: ignore[arg-type]
        good, bad = fit_critic(memory, campaign, 0.05).predict(["LR = 0.015\n", "LR = 1.0\n"])[0]
    assert good < bad


def test_the_favourite_is_not_the_lucky_one_but_the_one_whose_neighbours_did_well_too(tmp_path: Path) -> None:
    campaign = Campaign("c", "embedded", {}, "digest", 0, "2026-11-26T00:00:00+00:00", "text")
    noise = np.random.default_rng(0).normal(0, 0.01, 41)
    with contextlib.closing(Memory(tmp_path / "memory.duckdb")) as memory:
        memory.create_campaign(campaign)
        for index in range(41):
            # The best learning rate is that of experiment 20; experiment 33, far from it, was lucky once.
            value = 1.0 + 0.0005 * (index - 20) ** 2 + (-0.12 if index == 33 else noise[index])
            source = f"LR = {0.01 * 1.1**index}\n"
            known = {"source": source, "source_hash": source_hash(source), "value": value}
            memory.commit_iteration(Experiment("c", index, "discarded", **known), State())  # type: ignore[arg-type]
        values = {one.index: one.value for one in memory.programs("c")}
        found = favourite(memory, campaign, fit_critic(memory, campaign, 0.05))
    assert found is not None
    assert min(values, key=values.__getitem__) == 33, "the test needs a lucky one"
    assert abs(found.index - 20) <= 3


def test_there_is_no_favourite_before_there_are_results(tmp_path: Path) -> None:
    campaign = Campaign("c", "embedded", {}, "digest", 0, "2026-11-26T00:00:00+00:00", "text")
    with contextlib.closing(Memory(tmp_path / "memory.duckdb")) as memory:
        memory.create_campaign(campaign)
        assert favourite(memory, campaign, fit_critic(memory, campaign, 0.05)) is None
