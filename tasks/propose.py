"""Sample an edit from the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task

from tasks import ONCE

if TYPE_CHECKING:
    from arl_core.policy.proposers import Proposer
    from arl_core.policy.rollout import Rollout


@task(name="propose", **ONCE)
def propose(policy: Proposer, prompt: str, source: str, seed: int) -> Rollout:
    """Return one rollout: an edit with all that PPO needs of it. The seed fixes the sample."""
    return policy.propose(prompt, source, seed)


@task(name="propose-many", **ONCE)
def propose_many(policy: Proposer, prompt: str, source: str, seeds: Sequence[int]) -> list[Rollout]:
    """Return one rollout per seed, decoded as one batch from one prompt."""
    count = len(seeds)
    return policy.propose_many([prompt] * count, [source] * count, list(seeds))
