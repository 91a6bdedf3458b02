"""Sample an edit from the policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from prefect import task

from arl_core.patch import applied
from arl_core.policy.parents import by_turns
from arl_core.policy.proposers import Choose, in_order
from arl_core.records import Campaign, Experiment, source_hash
from tasks import ONCE

if TYPE_CHECKING:
    from arl_core.config import CampaignConfig
    from arl_core.memory import Memory
    from arl_core.policy.critic import Critic
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
    policy: Proposer, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Choose = in_order
) -> list[Rollout]:
    """Return one rollout per seed, decoded as one batch; `choose` as for propose()."""
    return policy.propose_many(list(prompts), list(sources), list(seeds), choose)


def fitted_critic(memory: Memory, campaign: Campaign, config: CampaignConfig) -> Critic | None:
    """Return a critic that has seen what came of this campaign's experiments; None where no choice is made: one sample for
    each experiment, or a proposer that is a control without a critic."""
    if not config.policy.guided:
        return None
    from arl_core.policy.choice import fit_critic

    return fit_critic(memory, campaign, config.reward.scale)


def parents_of(
    memory: Memory,
    campaign: Campaign,
    config: CampaignConfig,
    critic: Critic | None,
    incumbent: Experiment,
    indices: Sequence[int],
) -> list[Experiment]:
    """Return whose program is edited, for each of the experiments to come, as policy.parents says."""
    favourite = None
    if critic is not None and config.policy.parents == "by_turns":
        from arl_core.policy import choice

        favourite = choice.favourite(memory, campaign, critic)
    return by_turns(incumbent, favourite, indices)


def choosing(
    memory: Memory,
    campaign: Campaign,
    config: CampaignConfig,
    critic: Critic | None,
    parents: Mapping[str, Experiment],
    under_way: Collection[str] = (),
    allowed: Callable[[str], bool] = lambda _program: True,
) -> Choose:
    """Return who chooses among sampled edits. `parents`: whose program is edited under each prompt.

    `under_way`: hashes of the programs that run now, which the memory does not know yet. `allowed`: a rule of the problem's
    own that a program must keep.
    """
    if critic is None:
        return in_order
    from arl_core.policy.choice import Chooser

    problem = config.problem()

    def program_of(rollout: Rollout) -> str | None:
        edit = applied(parents[rollout.prompt].source, rollout, config.edit, memory, campaign.id, problem)
        new = edit.runs and source_hash(edit.source) not in under_way
        return edit.source if new and allowed(edit.source) else None

    return Chooser(program_of, critic)
