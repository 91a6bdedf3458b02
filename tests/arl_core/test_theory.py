"""The theory against closed forms and simulated campaigns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from arl_core.theory import (
    MOST_EXPERIMENTS,
    best_so_far,
    drift,
    experiments_needed,
    experiments_needed_predictive,
    gain_by_luck,
    improvement_rate,
)


@pytest.mark.parametrize(("p", "needed"), [(0.5, 5), (0.05, 59), (0.01, 299), (1.0, 1), (0.0, MOST_EXPERIMENTS)])
def test_the_bound_is_the_papers(p, needed):
    assert experiments_needed(p) == needed
    if 0 < p < 1:
        assert (1 - p) ** needed <= 0.05 < (1 - p) ** (needed - 1)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_probability_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match="p must lie"):
        experiments_needed(bad)


def test_the_rate_counts_gains_above_epsilon_only():
    rate = improvement_rate([0.0, 0.01, 0.02, 0.0, math.nan], 0.01)
    assert (rate.successes, rate.trials) == (1, 5)
    assert rate.median == pytest.approx(stats.beta(1.5, 4.5).median())
    assert rate.low < rate.median < rate.high
    few, many = rate.needed_range
    assert few <= rate.needed <= many


def test_no_trial_leaves_the_prior():
    rate = improvement_rate([], 0.0)
    assert rate.median == pytest.approx(0.5)
    assert rate.low < 0.01
    assert rate.high > 0.99


def test_the_credible_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, hits = 0.08, 0
    for _ in range(400):
        rate = improvement_rate(list((rng.random(60) < truth).astype(float)), 0.0)
        hits += rate.low <= truth <= rate.high
    assert 0.91 <= hits / 400 <= 0.99


def test_unsure_of_p_one_must_wait_longer_than_the_median_says():
    rate = improvement_rate([1.0] + [0.0] * 19, 0.0)
    assert rate.needed_predictive > rate.needed
    many = improvement_rate([1.0] * 100 + [0.0] * 1900, 0.0)
    assert many.needed_predictive == pytest.approx(many.needed, rel=0.05), "with many trials both agree"


def test_the_predictive_count_is_the_least_that_suffices():
    count = experiments_needed_predictive(2, 20)
    grid = np.random.default_rng(1).beta(2.5, 18.5, 200_000)
    assert np.mean((1 - grid) ** count) == pytest.approx(0.05, abs=0.002)


def test_a_campaign_without_any_gain_waits_very_long():
    assert experiments_needed_predictive(0, 10) > 1000


@pytest.mark.parametrize(("early", "late", "low", "high"), [(10, 0, 0.97, 1.0), (0, 10, 0.0, 0.03), (5, 5, 0.4, 0.6)])
def test_drift_tells_whether_gains_became_rarer(early, late, low, high):
    gains = [1.0] * early + [0.0] * (30 - early) + [1.0] * late + [0.0] * (30 - late)
    found = drift(gains, 0.0)
    assert found is not None
    assert low <= found <= high


def test_drift_says_nothing_of_a_handful():
    assert drift([1.0] * 7, 0.0) is None


def test_the_best_so_far_never_worsens_in_either_direction():
    gains = [0.0, 0.1, 0.0, math.nan, 0.2]
    assert best_so_far(2.0, gains, "lower").best.tolist() == pytest.approx([2.0, 2.0, 1.9, 1.9, 1.9, 1.7])
    assert best_so_far(2.0, gains, "higher").best.tolist() == pytest.approx([2.0, 2.0, 2.1, 2.1, 2.1, 2.3])


def test_the_compensated_process_has_no_trend_when_gains_keep_their_rate():
    rng = np.random.default_rng(2)
    ends, slowing = [], []
    for _ in range(400):
        won = rng.exponential(0.01, 80) * (rng.random(80) < 0.2)
        process = best_so_far(1.0, list(won), "lower")
        ends.append(process.compensated[-1] - process.compensated[40])
        won[40:] = 0.0  # nothing is found any more
        process = best_so_far(1.0, list(won), "lower")
        slowing.append(process.compensated[-1] - process.compensated[40])
    # The running mean is itself a martingale's ratio: the mean over campaigns vanishes within its error.
    assert abs(np.mean(ends)) < 4 * np.std(ends) / 20
    assert np.mean(slowing) > 10 * np.std(slowing) / 20, "slower gains drift upwards, against a metric to be lowered"


def test_luck_alone_looks_like_a_gain():
    draws = np.random.default_rng(3).normal(0, 0.01, (20_000, 31))
    assert gain_by_luck(0.01, 30) == pytest.approx(draws.max(axis=1).mean(), rel=0.01)
    assert gain_by_luck(0.0, 30) == gain_by_luck(0.01, 0) == 0.0
    with pytest.raises(ValueError, match="noise_sd"):
        gain_by_luck(-1.0, 3)
