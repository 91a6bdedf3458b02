"""The reward as a truth table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl_core.config import RewardSettings
from arl_core.reward import reward
from frozen_env.contract import Status

SETTINGS = RewardSettings(scale=0.02)


def of(status: Status, value: float | None, incumbent: float | None = 2.0, direction="lower") -> float:
    return reward(status, value=value, incumbent=incumbent, direction=direction, settings=SETTINGS)["reward"]


@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [
        (Status.KEPT, 1.98, math.tanh(1)),  # one scale better
        (Status.DISCARDED, 2.0, 0.0),  # a tie
        (Status.DISCARDED, 2.02, -0.5 * math.tanh(1)),  # one scale worse
        (Status.DISCARDED, 90.0, -0.5),  # hopeless, still above every invalid edit
        (Status.STOPPED_EARLY, 2.02, -0.5 * math.tanh(1)),  # from its forecast
        (Status.STOPPED_EARLY, 1.98, 0.0),  # a forecast never earns what a measurement does
        (Status.STOPPED_EARLY, None, -0.8),  # diverged: no forecast, as useful as a crash
        (Status.DISCARDED, math.nan, -0.8),
        (Status.REJECTED, None, -0.6),
        (Status.DUPLICATE, None, -0.6),
        (Status.CRASHED, None, -0.8),
        (Status.TIMED_OUT, None, -1.0),
    ],
)
def test_each_outcome_has_its_reward(status, value, expected):
    assert of(status, value) == pytest.approx(expected)


def test_higher_is_better_turns_the_sign():
    assert of(Status.KEPT, 2.02, direction="higher") == pytest.approx(math.tanh(1))
    assert of(Status.DISCARDED, 1.98, direction="higher") < 0


def test_without_an_incumbent_a_score_is_worth_nothing():
    assert of(Status.KEPT, 1.5, incumbent=None) == 0.0


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_lower_value_never_earns_less(first, second, incumbent):
    low, high = sorted((first, second))
    assert of(Status.DISCARDED, low, incumbent) >= of(Status.DISCARDED, high, incumbent)


@given(st.sampled_from(Status), st.one_of(st.none(), st.floats()), st.one_of(st.none(), st.floats(-100, 100)))
def test_every_reward_is_finite_and_bounded(status, value, incumbent):
    assert -1.0 <= of(status, value, incumbent) <= 1.0


def test_penalties_out_of_order_are_refused():
    with pytest.raises(ValueError, match="ordered"):
        RewardSettings(scale=0.02, invalid=-0.9)


def test_the_terms_add_up():
    terms = reward(Status.KEPT, value=1.9, incumbent=2.0, direction="lower", settings=SETTINGS)
    assert terms["reward"] == terms["gain"] + terms["penalty"]
