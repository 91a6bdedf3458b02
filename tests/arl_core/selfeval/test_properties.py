"""Properties of the verdict: units do not matter, the promise of alpha holds, the forecast is calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arl_core.selfeval import Curve, Forecaster, make_judge
from arl_core.selfeval.curve import GRID, levels
from tests.arl_core.selfeval.campaigns import SCALE, progress, reports, snapshot

FINALS = [2.10, 2.05, 2.08, 2.02, 2.04, 2.00, 2.06]


UNITS = [0.1, 0.5, 2.0, 30.0]
FRACTIONS = [0.1, 0.3, 0.6, 0.9]


@settings(deadline=None, max_examples=25)
@given(unit=st.sampled_from(UNITS), final=st.floats(1.8, 2.4), fraction=st.sampled_from(FRACTIONS))
def test_the_unit_of_the_loss_does_not_change_the_verdict(unit: float, final: float, fraction: float) -> None:
    plain = make_judge(snapshot(FINALS))(progress(reports(final), fraction))
    scaled = make_judge(snapshot(FINALS, unit=unit))(progress(reports(final, unit=unit), fraction))
    assert plain.p_improve == pytest.approx(scaled.p_improve, abs=2e-3)
    assert plain.forecast == pytest.approx(scaled.forecast, rel=1e-3)
    level = Forecaster(snapshot(FINALS)).stop_below(fraction)
    if not 0.8 * level < plain.p_improve < 1.25 * level:  # type: ignore[operator]  # there rounding could tip it
        assert plain.stop is scaled.stop


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(("final", "stop"), [(2.3, True), (2.0, False)], ids=["hopeless", "level with the best"])
def test_a_hopeless_run_is_stopped_and_a_level_one_not_in_every_unit(final: float, stop: bool, fraction: float) -> None:
    for unit in UNITS:
        verdict = make_judge(snapshot(FINALS, unit=unit))(progress(reports(final, unit=unit), fraction))
        assert verdict.stop is stop, verdict.reason


@settings(deadline=None, max_examples=25)
@given(
    final=st.floats(1.9, 2.3),
    worse=st.floats(0.0, 0.5),
    fraction=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 50),
)
def test_a_curve_that_is_worse_everywhere_is_never_more_likely_to_improve(
    final: float, worse: float, fraction: float, seed: int
) -> None:
    judge = make_judge(snapshot(FINALS))
    better = judge(progress(reports(final, seed=seed), fraction))
    lower = judge(progress(reports(final + worse, seed=seed), fraction))
    assert lower.p_improve <= better.p_improve + 1e-6  # type: ignore[operator]


@settings(deadline=None, max_examples=100)
@given(losses=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_every_curve_that_the_protocol_lets_through_has_levels(losses: list[float]) -> None:
    curve = Curve.from_points(
        np.arange(1, len(losses) + 1) / len(losses), np.array(losses), np.zeros(len(losses), dtype=bool)
    )
    assert np.isfinite(levels(curve, GRID[-1:])).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 2000))
def test_a_level_only_looks_at_the_past(seed: int, n: int) -> None:
    curve = Curve.from_reports(reports(2.0, n=n, seed=seed))
    for at in (0.3, 0.7):
        whole, seen = levels(curve, np.array([at]))[0], levels(curve.until(at), np.array([at]))[0]
        assert np.isnan(whole) == np.isnan(seen)
        assert np.isnan(seen) or whole == pytest.approx(seen, rel=2e-2)  # the noise estimate sees the whole


def test_a_level_is_nearer_to_the_truth_than_the_last_report() -> None:
    fraction_N = np.arange(1, 301) / 300
    truth = 2.0 + 0.25 * (fraction_N**-0.4 - 1)
    errors, last = [], []
    for seed in range(30):
        loss_N = truth + np.random.default_rng(seed).normal(0, 0.05, 300)
        curve = Curve.from_points(fraction_N, loss_N, np.zeros(300, dtype=bool))
        errors.append(levels(curve, GRID[11:12])[0] - truth[89])
        last.append(loss_N[89] - truth[89])
    assert np.std(errors) < 0.4 * np.std(last)
    assert abs(np.mean(errors)) < 0.01


def test_held_out_points_and_training_points_are_read_together() -> None:
    fraction_N = np.linspace(0.02, 1, 50)
    held_out_N = np.arange(50) % 5 == 0
    truth = 2.0 + 0.1 * (fraction_N**-0.4 - 1)
    noise = np.where(held_out_N, 0.001, 0.05) * np.random.default_rng(0).normal(size=50)
    curve = Curve.from_points(fraction_N, truth + noise, held_out_N)
    assert levels(curve, np.array([0.5]))[0] == pytest.approx(truth[24], abs=0.01)


@pytest.mark.parametrize("completed", [4, 24])
@pytest.mark.parametrize(("n", "alpha"), [(30, 0.15), (300, 0.15), (30, 0.4), (300, 0.4)])
def test_a_run_that_ties_is_killed_no_more_often_than_alpha_over_all_its_checks(
    completed: int, n: int, alpha: float
) -> None:
    killed, trials = 0, 60
    for trial in range(trials):
        rng = np.random.default_rng((completed, n, trial))
        finals = rng.normal(2.05, 0.04, completed).tolist()
        state = snapshot(finals, alpha=alpha)
        judge = make_judge(state)
        run = reports(min(finals), n=n, seed=50_000 + trial)
        killed += any(judge(progress(run, check)).stop for check in state.checks)
    sampling = 2 * np.sqrt(alpha * (1 - alpha) / trials)
    assert killed / trials <= alpha + sampling


def test_the_forecast_interval_holds_nine_in_ten_finals() -> None:
    rng = np.random.default_rng(5)
    held = []
    for trial in range(12):
        state = snapshot(rng.normal(2.05, 0.04, 16).tolist())
        forecaster = Forecaster(state)
        for k, final in enumerate(rng.normal(2.08, 0.05, 10)):
            seen = forecaster.outlook(Curve.from_reports(reports(final, seed=90_000 + 100 * trial + k)), 0.4)
            held.append(seen.low <= SCALE * final <= seen.high)
    assert 0.82 <= np.mean(held) <= 1.0
