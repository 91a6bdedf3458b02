"""Sample an edit from the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task

from arl_core.policy.proposers import Worth, always
from tasks import ONCE

if TYPE_CHECKING:
    from arl_core.policy.proposers import Proposer
    from arl_core.policy.rollout import Rollout


@task(name="propose", **ONCE)
def propose(policy: Proposer, prompt: str, source: str, seed: int, worth: Worth = always) -> Rollout:
    """Return one rollout: an edit with all that PPO needs of it. The seed fixes the sample.

    A policy that samples several edits for one experiment returns one that is not `worth` it only for want of another.
    """
    return policy.propose(prompt, source, seed, worth)


@task(name="propose-many", **ONCE)
def propose_many(
    policy: Proposer, prompt: str, source: str, seeds: Sequence[int], worth: Worth = always
) -> list[Rollout]:
    """Return one rollout per seed, decoded as one batch from one prompt; `worth` as for propose()."""
    count = len(seeds)
    return policy.propose_many([prompt] * count, [source] * count, list(seeds), worth)
