"""Which program each experiment to come edits, and under which prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arl_core.records import Experiment


def by_turns(incumbent: Experiment, favourite: Experiment | None, indices: Sequence[int]) -> list[Experiment]:
    """Return a parent for each experiment: the critic's favourite for odd ones, where it has one, the incumbent for the rest."""
    return [favourite if favourite is not None and index % 2 else incumbent for index in indices]


@dataclass(frozen=True)
class Shown:
    """What the policy is shown for the experiments to come: a prompt for each, and by prompt whose program it edits."""

    prompts: list[str]
    parents: dict[str, Experiment]

    @classmethod
    def of(cls, parents: Sequence[Experiment], prompt_of: Callable[[Experiment], str]) -> Shown:
        """Make each parent's prompt once."""
        prompts = {one.index: prompt_of(one) for one in {one.index: one for one in parents}.values()}
        # A prompt that two parents share (a source cut short) stands for the first of them, for the sampler and for the patch.
        by_prompt = {prompts[one.index]: one for one in reversed(parents)}
        return cls([prompts[one.index] for one in parents], by_prompt)

    @property
    def sources(self) -> list[str]:
        return [self.parents[prompt].source for prompt in self.prompts]
