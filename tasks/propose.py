"""Sample an edit from the policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from prefect import task

from arl_core.policy.proposers import Choose, in_order
from arl_core.records import Campaign, source_hash
from tasks import ONCE
from tasks.patch import applied

if TYPE_CHECKING:
    from arl_core.config import CampaignConfig
    from arl_core.memory import Memory
    from arl_core.policy.proposers import Proposer
    from arl_core.policy.rollout import Rollout


@task(name="propose", **ONCE)
def propose(policy: Proposer, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
    """Return one rollout: an edit with all that PPO needs of it. The seed fixes the sample.

    A policy that samples several edits for one experiment asks `choose` which of them is returned.
    """
    return policy.propose(prompt, source, seed, choose)


@task(name="propose-many", **ONCE)
def propose_many(
    policy: Proposer, prompt: str, source: str, seeds: Sequence[int], choose: Choose = in_order
) -> list[Rollout]:
    """Return one rollout per seed, decoded as one batch from one prompt; `choose` as for propose()."""
    count = len(seeds)
    return policy.propose_many([prompt] * count, [source] * count, list(seeds), choose)


def choosing(
    memory: Memory,
    campaign: Campaign,
    config: CampaignConfig,
    source: str,
    under_way: Collection[str] = (),
    allowed: Callable[[str], bool] = lambda _program: True,
) -> Choose:
    """Return who chooses among sampled edits of `source`: a critic that has seen what came of this campaign's experiments.

    `under_way`: hashes of the programs that run now, which the memory does not know yet. `allowed`: a rule of the problem's
    own that a program must keep. The critic is fitted once, here.
    """
    if config.policy.choices == 1:
        return in_order
    from arl_core.policy.choice import Chooser, fit_critic

    problem = config.problem()

    def program_of(rollout: Rollout) -> str | None:
        edit = applied(source, rollout, config.edit, memory, campaign.id, problem)
        new = edit.runs and source_hash(edit.source) not in under_way
        return edit.source if new and allowed(edit.source) else None

    return Chooser(program_of, fit_critic(memory, campaign, config.reward.scale))
