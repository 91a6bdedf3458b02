"""What the critic decides: which of several sampled edits are run (valid and new ones only), and which program is edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arl_core.memory import Memory
from arl_core.policy.critic import Critic
from arl_core.policy.rollout import Rollout
from arl_core.records import Campaign, Experiment, source_hash


@dataclass(frozen=True)
class Chooser:
    """`program_of` gives the program that an edit makes, None for an edit that is invalid or was tried before."""

    program_of: Callable[[Rollout], str | None]
    critic: Critic

    def __call__(self, pool: list[Rollout], seeds: Sequence[int]) -> list[int]:
        """Return one place in the pool for each seed: the best by a draw of the critic, no program twice.

        Edits that make no new program come last, when nothing else was sampled. The pool is no smaller than `seeds`.
        """
        programs: dict[str, tuple[int, str]] = {}  # by the hash that novelty is judged by: spelling makes no program
        for place, rollout in enumerate(pool):
            if program := self.program_of(rollout):
                programs.setdefault(source_hash(program), (place, program))
        new = [place for place, _ in programs.values()]
        chosen = [new[one] for one in self.critic.choose([program for _, program in programs.values()], seeds)]
        rest = [place for place in range(len(pool)) if place not in chosen]
        rest.sort(key=lambda place: pool[place].completion in {pool[one].completion for one in chosen})
        return [*chosen, *rest[: len(seeds) - len(chosen)]]


def fit_critic(memory: Memory, campaign: Campaign, scale: float) -> Critic:
    """Return a critic that has seen what came of this campaign's latest experiments. `scale` as in reward.scale."""
    programs = [one for one in memory.programs(campaign.id) if one.source]
    sign = 1 if campaign.direction == "lower" else -1
    losses = [None if (value := _value(one)) is None else sign * value for one in programs]
    return Critic([one.source for one in programs], losses, scale)


def favourite(memory: Memory, campaign: Campaign, critic: Critic) -> Experiment | None:
    """Return the measured experiment whose program the critic expects most of; None before it is ready.

    The best value seen is partly luck: of many programs that are level, the luckiest. The posterior mean of a program leans
    on its neighbours' results too.
    """
    measured = [one for one in memory.programs(campaign.id) if one.source and one.value is not None]
    if not critic.ready or not measured:
        return None
    mean_N, _ = critic.predict([one.source for one in measured])
    return memory.experiment(campaign.id, measured[int(np.argmin(mean_N))].index)


def _value(experiment: Experiment) -> float | None:
    """The mean over fresh seeds, the measured value, or the forecast of a run that was stopped early."""
    return experiment.figure if experiment.figure is not None else experiment.estimate
