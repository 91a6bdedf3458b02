"""The pooled noise: what it counts, how well it is known, when a gain deserves a second look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from arl_core.confirm import Noise, moderated, pooled, worth_a_second_look


def test_two_runs_give_one_degree_of_freedom():
    noise = pooled([[1.0, 1.2]])
    assert noise is not None
    assert (noise.df, noise.variance) == (1, pytest.approx(0.02))


def test_files_are_pooled_around_means_of_their_own():
    noise = pooled([[1.0, 1.2], [5.0, 5.2, 5.4]])
    assert noise is not None
    assert noise.df == 3
    assert noise.variance == pytest.approx((0.02 + 0.08) / 3)


def test_a_difference_has_the_variance_of_two_runs():
    rng = np.random.default_rng(0)
    gains = (rng.normal(0.3, 0.1, 4000) - rng.normal(0, 0.1, 4000)).tolist()
    noise = pooled([], [gains])
    assert noise is not None
    assert noise.sd == pytest.approx(0.1, rel=0.03)
    assert noise.sd_difference == pytest.approx(0.1 * math.sqrt(2), rel=0.03)


@pytest.mark.parametrize("repeats", [[], [[1.0]], [[], [2.0]], [[1.0, math.nan]]])
def test_without_a_repeat_nothing_is_known(repeats):
    assert pooled(repeats) is None


def test_the_interval_holds_the_true_sd_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        noise = pooled([rng.normal(0, 2.0, 4).tolist()])
        assert noise is not None
        low, high = noise.interval(0.9)
        held += low <= 2.0 <= high
    assert stats.binomtest(held, 2000, 0.9).pvalue > 0.001


def test_the_interval_narrows_as_evidence_grows():
    few, many = Noise(1.0, 3).interval(), Noise(1.0, 60).interval()
    assert few[0] < many[0] < 1 < many[1] < few[1]


@pytest.mark.parametrize(
    ("gain", "noise", "factor", "looks"),
    [
        (0.0, Noise(0.01**2, 3), 1.0, False),  # a tie
        (-0.05, Noise(0.01**2, 3), 1.0, False),  # worse
        (0.0141, Noise(0.01**2, 3), 1.0, False),  # just within one sd of a difference
        (0.0142, Noise(0.01**2, 3), 1.0, True),  # just beyond
        (0.0142, Noise(0.01**2, 3), 2.0, False),
        (1e-6, Noise(0.01**2, 3), 0.0, True),  # factor 0: any gain
        (1e-6, None, 1.0, True),  # unknown noise hides nothing
        (0.0, None, 1.0, False),
        (math.nan, None, 1.0, False),
    ],
)
def test_a_second_look_needs_a_gain_beyond_the_noise(gain, noise, factor, looks):
    assert worth_a_second_look(gain, noise, factor) is looks


@pytest.mark.parametrize(("variance", "df"), [(-1.0, 3), (math.nan, 3), (math.inf, 3), (1.0, 0)])
def test_noise_that_cannot_be_is_refused(variance, df):
    with pytest.raises(ValueError, match=str(df) if df < 1 else str(variance)):
        Noise(variance, df)


def test_a_confidence_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        Noise(1.0, 3).interval(1.5)


def test_a_files_own_spread_is_steadied_by_others_only_where_it_is_the_smaller():
    quiet, noisy, floor = [1.0, 1.1, 0.9], [1.0, 4.0, -2.0], Noise(1.0, 3)
    assert moderated(noisy, floor, 1.0) == pytest.approx(np.std(noisy, ddof=1))
    assert moderated(quiet, floor, 1.0) == pytest.approx(math.sqrt((0.02 + 1.0) / 3))
    assert moderated(quiet, floor, 0.0) == moderated(quiet, None, 1.0) == pytest.approx(0.1)
    assert moderated([1.0], floor, 1.0) == 1.0, "one run has no spread"
    assert moderated([1.0], None, 1.0) is None
