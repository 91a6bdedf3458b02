"""From a run's result to an experiment's status, value and estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frozen_env.contract import Cause, Direction, Ending, RunResult, Status, is_better


@dataclass(frozen=True)
class Outcome:
    """What the memory keeps of a run: value is measured, estimate is the calibrated forecast of a stopped run."""

    status: Status
    cause: Cause
    reason: str
    value: float | None = None
    estimate: float | None = None


def settle(result: RunResult, incumbent: float | None, direction: Direction) -> Outcome:
    """Compare a run with the incumbent (None: there is none yet, so a scored run is kept)."""
    if result.ending is Ending.FINISHED:
        if result.score is None or not math.isfinite(result.score.value):
            return Outcome(Status.CRASHED, Cause.BAD_MODEL, "the score is not finite")
        value = result.score.value
        better = incumbent is None or is_better(value, incumbent, direction)
        return Outcome(Status.KEPT if better else Status.DISCARDED, Cause.NONE, "", value)
    if result.ending is Ending.STOPPED:
        return Outcome(Status.STOPPED_EARLY, result.cause, result.reason, estimate=_forecast(result))
    status = {
        Ending.CRASHED: Status.CRASHED,
        Ending.TIMED_OUT: Status.TIMED_OUT,
        Ending.REJECTED: Status.REJECTED,
    }[result.ending]
    return Outcome(status, result.cause, result.reason)


def _forecast(result: RunResult) -> float | None:
    """The forecast of the verdict that stopped the run; None when it was stopped without one (divergence)."""
    stopping = [verdict for verdict in result.verdicts if verdict.stop]
    return stopping[0].forecast if stopping else None


def seconds_of(result: RunResult) -> float:
    """Return how long a run had its slot, start-up and scoring included."""
    return result.startup_s + result.training_s + result.scoring_s
