"""From a run's result to a status, as a truth table."""

from __future__ import annotations

import math

import pytest

from arl_core.outcome import settle
from frozen_env.contract import Cause, Ending, RunResult, Score, Status, Verdict


def scored(value: float) -> RunResult:
    score = Score("val_bpb", value, "lower", 100, 300, 0.1, 0.1, 0.0)
    return RunResult(ending=Ending.FINISHED, score=score)


@pytest.mark.parametrize(
    ("value", "incumbent", "direction", "status"),
    [
        (1.9, 2.0, "lower", Status.KEPT),
        (2.0, 2.0, "lower", Status.DISCARDED),
        (2.1, 2.0, "lower", Status.DISCARDED),
        (2.1, 2.0, "higher", Status.KEPT),
        (1.9, 2.0, "higher", Status.DISCARDED),
        (5.0, None, "lower", Status.KEPT),
        (math.nan, 2.0, "lower", Status.CRASHED),
        (math.inf, None, "lower", Status.CRASHED),
    ],
)
def test_a_scored_run_is_kept_only_when_it_beats_the_incumbent(value, incumbent, direction, status):
    assert settle(scored(value), incumbent, direction).status is status


@pytest.mark.parametrize(
    ("ending", "status"),
    [(Ending.CRASHED, Status.CRASHED), (Ending.TIMED_OUT, Status.TIMED_OUT), (Ending.REJECTED, Status.REJECTED)],
)
def test_a_run_without_a_score_keeps_its_cause(ending, status):
    outcome = settle(RunResult(ending=ending, cause=Cause.NAN, reason="why"), 2.0, "lower")
    assert (outcome.status, outcome.cause, outcome.reason, outcome.value) == (status, Cause.NAN, "why", None)


def test_a_stopped_run_keeps_the_forecast_of_the_verdict_that_stopped_it():
    verdicts = (Verdict(False, "", forecast=1.0), Verdict(True, "", forecast=2.5), Verdict(True, "", forecast=9.0))
    outcome = settle(RunResult(ending=Ending.STOPPED, cause=Cause.VERDICT, verdicts=verdicts), 2.0, "lower")
    assert (outcome.status, outcome.value, outcome.estimate) == (Status.STOPPED_EARLY, None, 2.5)


def test_a_run_stopped_for_divergence_has_no_estimate():
    outcome = settle(RunResult(ending=Ending.STOPPED, verdicts=(Verdict(True, "diverged"),)), 2.0, "lower")
    assert outcome.estimate is None
