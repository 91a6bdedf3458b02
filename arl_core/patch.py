"""A completion becomes a validated edit: applied, canonical, allowed, new. An invalid one costs no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arl_core.config import EditSettings
from arl_core.edit import Rules, apply_completion, apply_text, summarise
from arl_core.errors import EditRejected
from arl_core.memory import Memory
from arl_core.records import source_hash
from frozen_env.description import Description

if TYPE_CHECKING:
    from arl_core.policy.rollout import Rollout


@dataclass(frozen=True)
class Patch:
    """An edit ready to run, or the reason why it is not. `code` is a stable word for statistics."""

    source: str = ""
    diff: str = ""
    summary: str = ""
    repairs: tuple[str, ...] = ()
    reason: str = ""
    code: str = ""
    duplicate_of: int | None = None

    @property
    def runs(self) -> bool:
        return not self.reason


def applied(
    source: str, rollout: Rollout, settings: EditSettings, memory: Memory, campaign_id: str, problem: Description
) -> Patch:
    """Apply a rollout's edit to `source`. Novelty is judged here, before money is spent."""
    rules = Rules(
        settings.allowed_imports,
        settings.max_source_kb,
        settings.max_changed_lines,
        path=problem.path,
        must_define=problem.keep,
    )
    if rollout.runs_again:
        return Patch(source, summary="the same program again")
    try:
        if rollout.blocks:
            edit = apply_completion(source, _whole_blocks(rollout), rules)
        else:
            edit = apply_text(source, rollout.completion, rules)
    except EditRejected as error:
        return Patch(reason=str(error), code=error.code)
    summary = summarise(source, edit.source)
    seen = memory.seen(source_hash(edit.source), campaign_id)
    if seen is None:
        return Patch(edit.source, edit.diff, summary, edit.repairs)
    index = seen[1]
    reason = f"the same program as experiment {index}"
    return Patch(edit.source, edit.diff, summary, edit.repairs, reason, "duplicate", index)


def _whole_blocks(rollout: Rollout) -> str:
    """The blocks that were written to their end: a last one that ran out of tokens does not spoil those before it."""
    return "".join(f"<<<<<<< SEARCH\n{b.search}=======\n{b.replace}>>>>>>> REPLACE\n" for b in rollout.blocks)
