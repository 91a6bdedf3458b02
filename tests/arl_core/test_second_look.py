"""What is worked out of a second look's numbers: the best after a commit, a program's spread, the record's words."""

from __future__ import annotations

import math

import pytest

from arl_core.confirm import Decision, Judgement, Noise
from arl_core.outcome import Outcome
from arl_core.repeats import Repeat, Role
from arl_core.second_look import (
    Evidence,
    best_after,
    confirmation_of,
    found_out,
    gain_over,
    most_promising,
    value_with,
    worse_of,
)
from frozen_env.contract import Cause, Direction, Status


@pytest.mark.parametrize(
    ("present", "status", "value", "confirmed", "best"),
    [
        (None, Status.KEPT, 2.0, None, 2.0),
        (None, Status.CRASHED, None, None, None),
        (None, Status.KEPT, math.nan, None, None),
        (2.0, Status.KEPT, 1.9, None, 1.9),
        (2.0, Status.KEPT, 2.1, None, 2.0),
        (2.0, Status.DISCARDED, 1.9, 1.95, 2.0),
        (2.0, Status.REJECTED, None, None, 2.0),
        (2.0, Status.KEPT, 1.9, 2.01, 2.01),
    ],
    ids=("first", "none yet", "not a number", "better", "overtaken", "refuted", "rejected", "won in pairs"),
)
def test_the_best_after_a_commit_is_what_was_kept_by_its_mean_where_it_has_one(present, status, value, confirmed, best):
    assert best_after(present, status, value, confirmed, "lower") == best


def test_the_best_of_a_metric_to_be_raised_is_the_higher_one():
    assert best_after(0.8, Status.KEPT, 0.9, None, "higher") == 0.9
    assert best_after(0.8, Status.KEPT, 0.7, None, "higher") == 0.8


def test_a_programs_spread_is_over_its_fresh_seeds_and_leans_on_others_where_it_is_small():
    rows = [Repeat("c", 1, Role.FIRST, "aa", 0, 9.0)]
    rows += [Repeat("c", 1, Role.CANDIDATE, "aa", seed, value) for seed, value in ((1, 1.0), (2, 1.2), (3, None))]
    evidence = Evidence(rows)
    assert evidence.spread("aa", None, 2.0) == pytest.approx(math.sqrt(0.02))
    assert evidence.spread("aa", Noise(0.05, 5), 2.0) == pytest.approx(math.sqrt((0.02 + 2 * 0.05) / 3))
    assert evidence.spread("unknown", None, 2.0) is None


def test_a_record_says_of_its_confirmation_what_is_known():
    assert confirmation_of(None) == {}
    assert confirmation_of(Noise(0.04, 3), 0.1, runs=0, promotion=1) == {
        "noise_sd": 0.2,
        "noise_df": 3,
        "sd": 0.1,
        "runs": 0,
        "promotion": 1,
    }
    judged = confirmation_of(None, None, Judgement(Decision.DROP, 4, 0.02, 0.005, 0.3, 0.004), runs=8, level=0.004)
    assert judged == {"runs": 8, "level": 0.004, "pairs": 4, "gain": 0.02, "error": 0.005, "p": 0.3}


@pytest.mark.parametrize(("direction", "gain"), [("lower", 0.25), ("higher", -0.25)])
def test_a_gain_and_the_value_that_has_it_are_each_others_inverse(direction, gain):
    assert gain_over(1.75, 2.0, direction) == gain
    assert value_with(gain, 2.0, direction) == 1.75


@pytest.mark.parametrize(
    ("direction", "begun", "place"),
    [("lower", set(), 2), ("higher", set(), 0), ("lower", {4}, 0), ("lower", {4, 5}, 1)],
)
def test_the_best_waits_least_but_for_a_look_that_was_cut_off(direction, begun, place):
    assert most_promising([(4, 1.9), (5, 1.8), (6, 1.7), (7, None)], begun, direction) == place


@pytest.mark.parametrize(("direction", "worse"), [("lower", 2.0), ("higher", 1.0)])
def test_a_reward_is_held_against_the_worse_of_two_bars(direction: Direction, worse: float) -> None:
    """The incumbent of the proposal may have been found out while the candidate ran."""
    assert worse_of(1.0, 2.0, direction) == worse_of(2.0, 1.0, direction) == worse


def rerun(cause: Cause, status: Status = Status.REJECTED) -> Outcome:
    return Outcome(status, cause, "so it was")


def test_what_a_stalled_machine_may_bring_about_deposes_nobody() -> None:
    for cause in (Cause.LOOKAHEAD, Cause.STATEFUL):
        lost = found_out(3, rerun(cause), 7)
        assert lost is not None
        assert (lost.status, lost.cause) == (Status.REJECTED, cause)
        assert lost.reason == "was kept, then found out in a re-run on seed 7: so it was"
        assert found_out(0, rerun(cause), 7) is None, "nothing stands behind experiment 0"
    for cause in (Cause.PROTOCOL, Cause.NOT_DETERMINISTIC):
        assert found_out(3, rerun(cause), 7) is None
    assert found_out(3, rerun(Cause.OUT_OF_MEMORY, Status.CRASHED), 7) is None
