"""How strict the test is: every run counts, the stopped ones by what their forecast says of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from arl_core.selfeval import Curve, Snapshot, StoppedRun, make_judge
from arl_core.selfeval.judge import prepare
from tests.arl_core.selfeval.campaigns import progress, reports, snapshot

FINALS = [2.10, 2.05, 2.08, 2.02, 2.04, 2.00, 2.06, 2.01]  # the incumbent ended at 2.00


def strictness(state: Snapshot) -> float:
    test = prepare(state)
    assert test is not None
    return test.strictness


def stopped(final: float, at: float, above: float = 0.0, seed: int = 0) -> StoppedRun:
    """A run that would have ended at `final` and looked worse by `above` (nats) when it was stopped."""
    curve = Curve.from_reports(reports(final + above, seed=seed))
    return StoppedRun.from_curve(curve.until(at), at)


def with_stopped(*runs: StoppedRun, alpha: float = 0.4) -> Snapshot:
    return dataclasses.replace(snapshot(FINALS, alpha=alpha), stopped=runs)


def test_runs_that_were_stopped_although_they_might_have_tied_make_the_test_stricter() -> None:
    doubtful = [stopped(2.00, 0.3, above=0.05, seed=k) for k in range(10)]
    assert strictness(with_stopped(*doubtful)) > strictness(with_stopped()) + 0.05


def test_runs_that_were_stopped_as_hopeless_say_little_of_ties() -> None:
    base = strictness(with_stopped())
    hopeless = strictness(with_stopped(*(stopped(2.6, 0.3, seed=k) for k in range(10))))
    doubtful = strictness(with_stopped(*(stopped(2.00, 0.3, above=0.05, seed=k) for k in range(10))))
    assert 0 <= hopeless - base < 0.3 * (doubtful - base)


def test_runs_that_went_on_to_the_end_and_tied_inconspicuously_make_it_bolder() -> None:
    """Their worst deviations are small: under the prior's level, fewer than alpha of them would have been stopped."""
    few = snapshot([2.10, 2.05, 2.08, 2.02], alpha=0.4)
    many = snapshot([2.10, 2.05, 2.08, 2.02] + [2.02 + 0.002 * (k % 5) for k in range(40)], alpha=0.4)
    assert strictness(many) < strictness(few)


def test_a_run_counts_by_the_last_check_that_it_lived_to_see() -> None:
    """Stopped before the first look, or without a report that is a number: nothing is known of it."""
    early = stopped(2.00, 0.05)
    empty = StoppedRun(0.5, (None,) * 20)
    assert strictness(with_stopped(early, empty)) == strictness(with_stopped())


def test_what_a_stopped_run_would_have_shown_later_is_not_remembered() -> None:
    run = stopped(2.0, 0.33)
    assert len(run.levels) == 14  # fourteen fortieths: the column above is needed to interpolate
    assert all(level is not None for level in run.levels[1:])


def test_stopped_runs_survive_json_and_judge_alike() -> None:
    state = with_stopped(*(stopped(2.0, 0.3, above=0.05, seed=k) for k in range(5)))
    again = Snapshot.from_json(state.to_json())
    assert again == state
    shown = progress(reports(2.2, seed=77), 0.4)
    assert make_judge(again)(shown) == make_judge(state)(shown)


def test_only_the_latest_stopped_runs_are_kept() -> None:
    runs = [StoppedRun(0.1 + k / 1000, ()) for k in range(300)]
    kept = Snapshot.build(snapshot(FINALS).completed, runs).stopped
    assert kept == tuple(runs[-256:])


@pytest.mark.parametrize("alpha", [0.15, 0.6])
def test_a_campaign_that_stops_runs_still_kills_no_more_ties_than_alpha(alpha: float) -> None:
    """The completed runs of such a campaign are those that looked good; stopped ones make up for it."""
    killed, trials = 0, 16
    for trial in range(trials):
        rng = np.random.default_rng((7, trial))
        whole, cut = list(snapshot(FINALS[:4]).completed), list[StoppedRun]()
        for k in range(12):
            state = Snapshot.build(whole, cut, loss_scale=0.6, alpha=alpha)
            run, final = reports(rng.normal(2.04, 0.03), n=60, seed=1000 * trial + k), 0.0
            final = 0.6 * run[-1].loss
            judge = make_judge(state)
            at = next((check for check in state.checks if judge(progress(run, check)).stop), None)
            curve = Curve.from_reports(run)
            if at is None:
                whole.append(type(whole[0]).from_curve(curve, final))
            else:
                cut.append(StoppedRun.from_curve(curve.until(at), at))
        state = Snapshot.build(whole, cut, loss_scale=0.6, alpha=alpha)
        assert state.incumbent is not None
        judge, tie = make_judge(state), reports(state.incumbent / 0.6, n=60, seed=900_000 + trial)
        killed += any(judge(progress(tie, check)).stop for check in state.checks)
    assert killed / trials <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / trials)
