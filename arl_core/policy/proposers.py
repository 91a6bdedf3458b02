"""Who proposes edits. The flow speaks to one of these and does not ask which.

policy     a language model of ours; learns unless policy.learn is off
endpoint   a frozen model behind an OpenAI-compatible address (endpoint.py)
random     a random valid edit: the synthesiser of the warm start, without a model
random_critic   policy.choices of them, and the critic says which one is run: what a policy with a critic must beat
none       no edit: the incumbent runs again. What such a campaign "finds" is luck
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from arl_core.errors import PolicyError
from arl_core.policy.rollout import EditBlock, Rollout
from arl_core.policy.settings import PolicySettings
from frozen_env.description import Description

DRAWS = 200  # of a random edit until one applies
CHARS_PER_TOKEN = 3  # where no tokenizer is known; source code has 3 to 4

Choose = Callable[[list[Rollout], Sequence[int]], list[int]]
"""Says which of a pool of sampled edits are run: one place in the pool for each seed, no place twice."""


def in_order(pool: list[Rollout], seeds: Sequence[int]) -> list[int]:
    """Take the first edit that was sampled for each seed."""
    return [place * (len(pool) // len(seeds)) for place in range(len(seeds))]


class Proposer(Protocol):
    """What the flow needs of whoever proposes. Only a policy of ours learns and has something to save."""

    def count_tokens(self, text: str) -> int: ...
    def rehearse(self, source: str, seed: int) -> None: ...
    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout: ...
    def propose_many(
        self, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Choose = in_order
    ) -> list[Rollout]: ...
    def update(self, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> dict[str, float]: ...
    def save(self, folder: Path) -> str: ...
    def restore(self, folder: Path, digest: str = "") -> None: ...
    def make_room(self) -> None: ...


def load_proposer(
    settings: PolicySettings,
    data_dir: Path,
    say: Callable[[str], None] = lambda _: None,
    problem: Description | None = None,
) -> Proposer:
    """Return the proposer that the settings name, for a problem (None: the built-in one).

    Raises PolicyError when it cannot be loaded or reached.
    """
    if settings.proposer == "random":
        return RandomEdits(problem)
    if settings.proposer == "random_critic":
        return ChosenEdits(settings.choices, problem)
    if settings.proposer == "none":
        return NoEdits()
    if settings.proposer == "endpoint":
        from arl_core.policy.endpoint import Endpoint

        return Endpoint(settings, problem)
    from arl_core.policy.policy import Policy  # torch and transformers, seconds: only for who needs them

    return Policy.load(settings, data_dir, say)


class Frozen(ABC):
    """The part of a proposer that has no weights: nothing to learn, to keep or to move.

    Unless it says otherwise it draws one edit per experiment, has no choice among them and does not ask.
    """

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text takes; rather too many than too few."""
        return -(-len(text) // CHARS_PER_TOKEN)

    def rehearse(self, source: str, seed: int) -> None:
        """Find out what would fail at the first proposal: nothing here."""
        return

    @abstractmethod
    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout: ...

    def propose_many(
        self, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Choose = in_order
    ) -> list[Rollout]:
        return [self.propose(*each) for each in zip(prompts, sources, seeds, strict=True)]

    def update(self, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> dict[str, float]:
        raise PolicyError("this proposer does not learn; set policy.proposer to policy")

    def save(self, folder: Path) -> str:
        raise PolicyError("this proposer has nothing to save; set policy.proposer to policy")

    def restore(self, folder: Path, digest: str = "") -> None:
        raise PolicyError(f"{folder} is a checkpoint of a policy; set policy.proposer to policy to go on with it")

    def make_room(self) -> None:
        return None


class RandomEdits(Frozen):
    """Random search: edits drawn as the warm start's examples are, constants on their natural scale and known levers."""

    def __init__(self, problem: Description | None = None) -> None:
        from arl_core.policy.levers import built_in_levers, levers_of

        self._levers = built_in_levers() if problem is None else levers_of(problem)

    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
        """Draw one edit that applies to the source. Raises PolicyError when none of DRAWS does."""
        from arl_core.policy.synthesis import apply, completion, draw_edit

        rng = random.Random(seed)
        for _ in range(DRAWS):
            drawn = draw_edit(source, rng, levers=self._levers)
            if drawn and apply(source, drawn):
                blocks = tuple(EditBlock(_lines(search), _lines(replace)) for search, replace in drawn)
                return Rollout.foreign(prompt, completion(drawn), seed, blocks)
        raise PolicyError(f"none of {DRAWS} random edits applies to the source; has it no constants left?")


class ChosenEdits(Frozen):
    """Random search with the critic: `choices` random edits for each experiment, and `choose` says which one is run."""

    def __init__(self, choices: int, problem: Description | None = None) -> None:
        self._random = RandomEdits(problem)
        self._choices = choices

    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
        return self.propose_many([prompt], [source], [seed], choose)[0]

    def propose_many(
        self, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Choose = in_order
    ) -> list[Rollout]:
        """Return one edit per prompt, not necessarily drawn for that prompt. Raises PolicyError as RandomEdits does."""
        pool = [
            self._random.propose(prompt, source, (seed * self._choices + k) % 2**31)
            for prompt, source, seed in zip(prompts, sources, seeds, strict=True)
            for k in range(self._choices)
        ]
        return [pool[place] for place in choose(pool, seeds)]


class NoEdits(Frozen):
    """The control: the same program again and again."""

    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
        return Rollout.foreign(prompt, "", seed, notes={"again": 1.0})


def _lines(text: str) -> str:
    return f"{text}\n" if text else ""
