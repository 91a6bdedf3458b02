"""The campaign's error is never overspent; the next run is the one that the next pair lacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl_core.confirm import Arm, Run, next_level, next_runs, paired_gains, seeds_in_order

C, I = Arm.CANDIDATE, Arm.INCUMBENT  # noqa: E741


@given(st.floats(0.5, 0.999), st.lists(st.integers(-5, 500), max_size=300))
def test_levels_never_sum_to_more_than_the_campaign_may_err(confidence, remaining):
    spent: list[float] = []
    for planned in remaining:
        spent.append(next_level(confidence, spent, planned))
        assert spent[-1] > 0
    assert sum(spent) <= (1 - confidence) * (1 + 1e-9)


def test_a_longer_campaign_gives_each_candidate_less():
    assert next_level(0.95, [], 8) > next_level(0.95, [], 100) > next_level(0.95, [], 1000)


def spend(tests: int, planned: int, spent: list[float] | None = None) -> list[float]:
    spent = list(spent or [])
    for _ in range(tests):
        spent.append(next_level(0.95, spent, planned))
    return spent


def test_the_expected_tests_of_the_first_night_share_half_of_the_error():
    spent = spend(12, planned=100)  # 12 of 100 candidates ask for a second look
    assert sum(spent) == pytest.approx(0.025)
    assert max(spent) / min(spent) < 4


def test_a_campaign_that_goes_on_each_night_can_still_confirm_after_a_month():
    spent = spend(30 * 12, planned=100)
    by_night = [sum(spent[12 * night : 12 * night + 12]) for night in range(30)]
    for night, share in enumerate(by_night, 1):
        assert share == pytest.approx(0.05 / (night * (night + 1)))


def test_a_campaign_that_is_extended_one_experiment_at_a_time_never_runs_dry():
    spent = spend(2000, planned=1)
    assert spent[-1] > 0
    assert sum(spent) <= 0.05


def test_a_memory_in_which_more_was_spent_than_there_was_leaves_next_to_nothing_and_no_error():
    assert 0 < next_level(0.95, [0.03, 0.03], 8) < 1e-12


def test_a_confidence_of_one_is_refused():
    with pytest.raises(ValueError, match=r"got 1\.0"):
        next_level(1.0, [], 8)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "run"),
    [
        ({}, {}, Run(C, 1)),  # the candidate first: if it fails, nothing was spent on the incumbent
        ({1: 2.0}, {}, Run(I, 1)),
        ({}, {1: 2.0, 2: 2.0, 3: 2.0}, Run(C, 1)),  # the incumbent's earlier runs are reused
        ({1: 2.0}, {1: 2.0, 2: 2.0}, Run(C, 2)),
        ({1: 2.0, 2: 2.0}, {1: 2.0, 2: 2.0}, Run(C, 3)),
        ({1: 2.0}, {1: None}, Run(C, 2)),  # the incumbent failed there: no pair
        ({1: 2.0, 2: 2.0, 3: 2.0}, {1: 2.0, 2: 2.0, 3: 2.0}, None),
        ({1: 2.0, 2: 2.0}, {1: 2.0, 2: 2.0, 3: None}, None),
    ],
)
def test_the_next_run_is_what_the_next_pair_lacks(candidate, incumbent, run):
    assert next(iter(next_runs([1, 2, 3], candidate, incumbent, 3)), None) == run


def test_all_that_the_first_pairs_lack_may_run_at_once():
    lacking = next_runs([1, 2, 3, 4], {1: 2.0}, {2: None, 3: 2.0}, pairs=3)
    assert lacking == [Run(I, 1), Run(C, 3), Run(C, 4), Run(I, 4)], "seed 2 makes no pair"


@pytest.mark.parametrize(
    ("candidate", "incumbent", "whole"),
    [
        ({1: 2.0, 4: 2.0, 5: 2.0}, {1: 2.0, 4: 2.0, 5: 2.0}, [1]),
        ({1: 2.0, 3: 2.0}, {1: 2.0, 2: None, 3: 2.0}, [1, 2, 3]),
        ({1: 2.0, 2: 2.0}, {1: 2.0}, [1]),
        ({}, {}, []),
    ],
    ids=["a kill left a gap", "no pair where the incumbent failed", "half a pair", "nothing yet"],
)
def test_looks_are_taken_on_the_pairs_up_to_the_first_that_is_not_whole(candidate, incumbent, whole):
    assert seeds_in_order([1, 2, 3, 4, 5], candidate, incumbent) == whole


def test_gains_are_paired_by_seed_and_positive_when_better():
    candidate, incumbent = {1: 1.9, 2: 2.1, 3: None, 5: 1.0}, {1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}
    assert paired_gains([1, 2, 3, 4, 5], candidate, incumbent, "lower") == pytest.approx([0.1, -0.1])
    assert paired_gains([2, 1], candidate, incumbent, "higher") == pytest.approx([0.1, -0.1])
