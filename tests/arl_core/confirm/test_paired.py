"""The sequential paired test: a truth table, its properties, and its level in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from arl_core.confirm import Decision, Noise, PairedTest

NOISE = Noise(1.0, 3)  # one run has sd 1
TEST = PairedTest(max_pairs=6, first_look=3, borrowed_df=1.0)
CONTINUE, PROMOTE, DROP = Decision.CONTINUE, Decision.PROMOTE, Decision.DROP


@pytest.mark.parametrize(
    ("gains", "decision"),
    [
        ([9.0], CONTINUE),  # enormous, and still one pair: never enough
        ([30.0, 31.0], CONTINUE),  # nor two, with looks from three on
        ([-0.1], DROP),  # the first fresh pair is worse: not worth more
        ([0.0], DROP),
        ([30.0, 31.0, 30.5], PROMOTE),  # thirty times the noise
        ([3.0, 2.5, 3.5], CONTINUE),  # three times: promising
        ([3.0, 2.5, 3.5, 3.0, 2.8, 3.2], PROMOTE),  # and it held
        ([3.0, -2.5, 0.1], DROP),  # did not hold
        (
            [0.5, 0.4, 0.6, 0.5, 0.4, 0.6],
            DROP,
        ),  # real perhaps, but small against other files' noise, and no looks are left
        ([40.0, 0.1, 0.2], DROP),  # one lucky pair makes a noise of its own
    ],
)
def test_what_follows_from_the_gains(gains, decision):
    assert TEST.judge(gains, NOISE, level=0.01).decision is decision


def test_without_known_noise_the_pairs_speak_for_themselves():
    assert TEST.judge([3.0], None, 0.01).decision is CONTINUE
    assert TEST.judge([-3.0], None, 0.01).decision is DROP
    assert TEST.judge([3.0, 3.1, 2.9, 3.0, 3.05, 2.95], None, 0.01).decision is PROMOTE


def test_a_noiseless_environment_needs_no_noise():
    assert TEST.judge([0.1, 0.1, 0.1], Noise(0.0, 3), 0.01).decision is PROMOTE
    assert TEST.judge([0.0, 0.0, 0.0], Noise(0.0, 3), 0.01).decision is DROP


def test_the_evidence_is_told_in_the_metrics_units():
    judged = PairedTest(4, 4, borrowed_df=0.0).judge([1.0, 3.0, 2.0, 2.0], None, 0.05)
    expected = stats.ttest_1samp([1.0, 3.0, 2.0, 2.0], 0.0, alternative="greater")
    assert judged.gain == 2.0
    assert judged.error == pytest.approx(stats.sem([1.0, 3.0, 2.0, 2.0]))
    assert judged.p == pytest.approx(expected.pvalue), "one look and nothing borrowed is Student's t"


def test_pairs_that_came_together_are_looked_at_one_after_the_other_and_none_is_dropped_for_the_first_of_them():
    gains = [3.0, 3.1, 3.0, -9.0]
    assert TEST.judge(gains[:3], NOISE, 0.1).decision is PROMOTE
    assert TEST.judge(gains, NOISE, 0.1).decision is not PROMOTE
    assert TEST.judge_new(gains, 0, NOISE, 0.1) == TEST.judge(gains[:3], NOISE, 0.1)
    assert TEST.judge_new(gains, 3, NOISE, 0.1) == TEST.judge(gains, NOISE, 0.1), "the third look has been taken"
    unlucky_first = [-0.1, 4.0, 4.0, 4.0]
    assert TEST.judge(unlucky_first[:1], NOISE, 0.1).decision is DROP
    assert TEST.judge_new(unlucky_first, 0, NOISE, 0.1).decision is not DROP


@given(st.integers(2, 12), st.data())
def test_the_looks_share_one_level(last, data):
    test = PairedTest(last, data.draw(st.integers(2, last)))
    weights = [test.weight(n) for n in range(last + 2)]
    assert math.fsum(weights) == pytest.approx(1.0)
    assert weights[: test.first_look] == [0.0] * test.first_look
    assert weights[-1] == 0.0


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.floats(0.0, 5), st.floats(0.001, 0.2))
def test_the_same_gains_shifted_up_are_never_judged_worse(gains, shift, level):
    rank = {DROP: 0, CONTINUE: 1, PROMOTE: 2}
    lower = TEST.judge(gains, NOISE, level)
    higher = TEST.judge([gain + shift for gain in gains], NOISE, level)
    assert higher.p <= lower.p + 1e-12
    assert rank[higher.decision] >= rank[lower.decision]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter(gains, unit):
    plain = TEST.judge(gains, NOISE, 0.02)
    scaled = TEST.judge([gain * unit for gain in gains], Noise(unit**2, 3), 0.02)
    assert scaled.p == pytest.approx(plain.p, rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_it_always_ends(gains):
    assert TEST.judge(gains, NOISE, 0.05).decision is not CONTINUE


def false_promotions(draw, tests: int, level: float, seed: int = 0, test: PairedTest = TEST) -> int:
    """Test level candidates to the end; count promotions. `draw(rng)` gives the sd of candidate and incumbent."""
    rng, count = np.random.default_rng(seed), 0
    for _ in range(tests):
        mine, theirs = draw(rng)
        noise = Noise(float(rng.chisquare(3)) / 3, 3)
        gains: list[float] = []
        decision = CONTINUE
        while decision is CONTINUE:
            gains.append(float(theirs * rng.normal() - mine * rng.normal()))
            decision = test.judge(gains, noise, level).decision
        count += decision is PROMOTE
    return count


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: (1.0, 1.0),
        lambda rng: (3.0, 1.0),  # a candidate far noisier than the files that the noise was learned on
        lambda rng: (0.2, 0.2),
        lambda rng: tuple(np.sqrt(2 / rng.chisquare(2, 2))),  # files that differ wildly in their noise
    ],
    ids=["equal noise", "noisy candidate", "quiet files", "every file its own"],
)
def test_a_candidate_that_is_level_is_promoted_no_more_often_than_its_level(draw):
    level, tests = 0.05, 3000
    hits = false_promotions(draw, tests, level)
    assert stats.binomtest(hits, tests, level, alternative="greater").pvalue > 0.001, hits


@pytest.mark.parametrize("times_as_noisy", [3.0, 10.0])
def test_a_noisy_candidate_borrows_no_degree_of_freedom_from_quiet_files_in_a_short_test(times_as_noisy):
    level, tests = 0.0125, 10_000
    hits = false_promotions(lambda rng: (times_as_noisy, 1.0), tests, level, test=PairedTest(5, 3))
    assert stats.binomtest(hits, tests, level, alternative="greater").pvalue > 0.001, hits


def test_other_files_noise_raises_the_scale_and_never_lowers_it():
    for noise in (Noise(1e-6, 3), Noise(0.1, 3), Noise(1.0, 3), Noise(9.0, 3)):
        assert TEST.judge([3.0, 2.5, 3.5], noise, 0.01).error >= TEST.judge([3.0, 2.5, 3.5], None, 0.01).error


@pytest.mark.parametrize(
    ("gains", "level", "message"),
    [
        ([], 0.05, "finite gains"),
        ([1.0] * 7, 0.05, "1 to 6"),
        ([math.nan], 0.05, "nan"),
        ([1.0], 0.0, "0.0"),
        ([1.0], 1.0, "1.0"),
    ],
)
def test_what_cannot_be_judged_is_refused(gains, level, message):
    with pytest.raises(ValueError, match=message):
        TEST.judge(gains, NOISE, level)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_pairs": 4, "first_look": 5}, "got 5"),
        ({"max_pairs": 4, "first_look": 1}, "got 1"),
        ({"max_pairs": 4, "borrowed_df": -1}, "got -1"),
    ],
)
def test_a_design_without_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PairedTest(**fields)
