"""Turn a completion into a validated edit, or into the reason why it is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task

from arl_core.config import EditSettings
from arl_core.memory import Memory
from arl_core.patch import Patch, applied
from frozen_env.description import Description
from tasks import ONCE

if TYPE_CHECKING:
    from arl_core.policy.rollout import Rollout


@task(name="patch", **ONCE)
def patch(
    source: str, rollout: Rollout, settings: EditSettings, memory: Memory, campaign_id: str, problem: Description
) -> Patch:
    """Return what came of applying a rollout's edit to `source`."""
    return applied(source, rollout, settings, memory, campaign_id, problem)
