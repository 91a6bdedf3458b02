"""Update the policy with PPO on a full batch, and checkpoint it before anything else is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task

from tasks import ONCE

if TYPE_CHECKING:
    from arl_core.policy.proposers import Proposer
    from arl_core.policy.rollout import Rollout

CHECKPOINTS_KEPT = 3  # every state names them all, so a torn one can fall back to the one before


@task(name="update", **ONCE)
def update(policy: Proposer, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> dict[str, float]:
    """Run PPO on the batch and return its metrics (docs/metrics.md)."""
    return policy.update(list(rollouts), list(rewards))


@task(name="checkpoint", **ONCE)
def checkpoint(policy: Proposer, folder: Path, step: int) -> tuple[str, str]:
    """Write the policy atomically to folder/step_NNNNNN; return its name and digest. Old ones are removed."""
    name = f"step_{step:06d}"
    shutil.rmtree(folder / name, ignore_errors=True)  # left by a campaign killed between checkpoint and commit
    digest = policy.save(folder / name)
    for old in sorted(folder.glob("step_*"))[:-CHECKPOINTS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return name, digest
