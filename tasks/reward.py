"""Turn an outcome into a reward."""

from __future__ import annotations

from prefect import task

from arl_core.config import RewardSettings
from arl_core.outcome import Outcome
from arl_core.reward import reward
from frozen_env.contract import Direction
from tasks import ONCE


@task(name="reward", **ONCE)
def make_reward(
    outcome: Outcome, incumbent: float | None, direction: Direction, settings: RewardSettings
) -> dict[str, float]:
    """Return the reward's terms (docs/metrics.md), computed against the incumbent of the proposal's time."""
    value = outcome.value if outcome.value is not None else outcome.estimate
    return reward(outcome.status, value=value, incumbent=incumbent, direction=direction, settings=settings)
