"""The reward of an experiment: finite, in [-1, 1], monotone in the metric, positive for an improvement.

    gain g = incumbent - value          (value - incumbent when higher is better)
    reward = tanh(g / scale)                     g > 0
           = loss_weight * tanh(g / scale)       g <= 0, so in (-loss_weight, 0]

A run that stopped early is scored from its calibrated forecast by the same formula, and never above 0: it was stopped
because it would not improve. What left no value has a fixed reward below every scored run, ordered by what it cost:
an invalid edit costs no training, a crash some, a time-out all of it. A graded reward below the incumbent matters: one
that only says "worse" makes every advantage negative once the incumbent is good. The value baseline centres it.
"""

from __future__ import annotations

import math

from arl_core.config import RewardSettings
from frozen_env.contract import Direction, Status


def reward(
    status: Status,
    *,
    value: float | None,
    incumbent: float | None,
    direction: Direction,
    settings: RewardSettings,
) -> dict[str, float]:
    """Return the terms `gain` and `penalty` and their sum `reward`.

    `value` is the measured metric, or the calibrated forecast of a run that stopped early; `incumbent` is the best at
    the time of the proposal (None before there is one: the gain is then 0). A value that is None or not finite where
    the status promises one counts as a crash.
    """
    penalties = {
        Status.REJECTED: settings.invalid,
        Status.DUPLICATE: settings.invalid,
        Status.CRASHED: settings.crashed,
        Status.TIMED_OUT: settings.timed_out,
    }
    if status in penalties:
        return _terms(0.0, penalties[status])
    if value is None or not math.isfinite(value):
        # A run that stopped for divergence has no forecast; it is as useful as a crash.
        return _terms(0.0, settings.crashed)
    if incumbent is None:
        return _terms(0.0, 0.0)
    gain = incumbent - value if direction == "lower" else value - incumbent
    squashed = math.tanh(gain / settings.scale)
    if status is Status.STOPPED_EARLY:
        squashed = min(0.0, squashed)
    return _terms(squashed if squashed > 0 else settings.loss_weight * squashed, 0.0)


def _terms(gain: float, penalty: float) -> dict[str, float]:
    return {"gain": gain, "penalty": penalty, "reward": gain + penalty}
