"""Where a language-model arm stands, as the state that is committed with each experiment: a round is taken up in its middle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from arl_core.records import State
from flows.unsettled import pack, unpack

if TYPE_CHECKING:
    from arl_core.policy.rollout import Rollout


@dataclass
class Progress:
    """What the next step of an arm needs to know."""

    spent_s: float = 0.0
    pending: list[tuple[Rollout, float]] = field(default_factory=list)  # with their rewards, until there are enough
    waiting: list[Rollout] = field(default_factory=list)  # proposed in this round and not answered yet
    parents: list[int] = field(default_factory=list)  # whose program each of them edits
    base_index: int = 0  # the incumbent when this round was proposed
    updates: int = 0
    checkpoint: list[str] | None = None  # name and digest of the policy after the last update
    made_with: list[str] = field(default_factory=list)  # code and number type of every start, each once

    def to_state(self) -> State:
        values = {
            "spent_s": self.spent_s,
            "waiting": len(self.waiting),
            "parents": self.parents,
            "base_index": self.base_index,
            "updates": self.updates,
            "checkpoint": self.checkpoint,
            "made_with": self.made_with,
        }
        # Those that wait for an answer come last, with a reward that nobody reads.
        return State(values=values, blob=pack([*self.pending, *((one, 0.0) for one in self.waiting)]))

    @classmethod
    def from_state(cls, state: State) -> Progress:
        values = dict(state.values)
        pairs, _ = unpack(state.blob)
        answered = len(pairs) - values.pop("waiting")
        return cls(pending=pairs[:answered], waiting=[one for one, _ in pairs[answered:]], **values)
