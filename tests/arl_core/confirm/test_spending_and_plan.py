"""The campaign's error is never overspent; the next run is the one that the next pair lacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl_core.confirm import Arm, Run, next_level, next_run, paired_gains

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


def test_the_expected_tests_of_a_campaign_get_about_the_same():
    spent: list[float] = []
    for test in range(12):  # 12 of 100 candidates ask for a second look
        spent.append(next_level(0.95, spent, 100 - 8 * test))
    assert max(spent) / min(spent) < 2.5


def test_a_campaign_that_is_extended_still_has_something_to_spend():
    spent = [next_level(0.95, [], 0)]
    assert next_level(0.95, spent, 8) > 0.005


def test_overspending_is_refused():
    with pytest.raises(ValueError, match="leave nothing"):
        next_level(0.95, [0.03, 0.03], 8)
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
    assert next_run([1, 2, 3], candidate, incumbent) == run


def test_gains_are_paired_by_seed_and_positive_when_better():
    candidate, incumbent = {1: 1.9, 2: 2.1, 3: None, 5: 1.0}, {1: 2.0, 2: 2.0, 3: 2.0, 4: 2.0}
    assert paired_gains([1, 2, 3, 4, 5], candidate, incumbent, "lower") == pytest.approx([0.1, -0.1])
    assert paired_gains([2, 1], candidate, incumbent, "higher") == pytest.approx([0.1, -0.1])
