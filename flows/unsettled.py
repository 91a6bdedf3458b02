"""What a campaign has paid for and not settled yet: rollouts that wait for an update, runs that wait for their second look.

Both are part of the state that is committed with every experiment, as JSON and npz archives in one zip: a killed campaign
loses what was running, and nothing that it had taken in.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arl_core.patch import Patch
from flows.costs import Costs
from frozen_env.contract import RunResult

if TYPE_CHECKING:
    from arl_core.policy.rollout import Rollout


@dataclass(frozen=True)
class Proposal:
    """One edit on its way. `parent_index` is whose program it edits; `incumbent_value` is the best at the time of the proposal,
    which the reward is computed against."""

    index: int
    parent_index: int
    incumbent_value: float
    rollout: Rollout
    edit: Patch
    policy_step: int
    costs: Costs


@dataclass(frozen=True)
class Landed:
    """A first run that looks better than the incumbent: it waits for its second look, or is in the middle of it."""

    proposal: Proposal
    result: RunResult


def pack(pending: Sequence[tuple[Rollout, float]], landed: Iterable[Landed] = ()) -> bytes:
    """Return rollouts with their rewards, and runs with their proposals, as a zip; b'' when there are none."""
    landed = list(landed)
    if not pending and not landed:
        return b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rewards.json", json.dumps([reward for _, reward in pending]))
        for i, (rollout, _) in enumerate(pending):
            archive.writestr(f"{i:04d}", rollout.to_bytes())
        archive.writestr("landed.json", json.dumps([_to_json(one) for one in landed]))
        for one in landed:
            archive.writestr(_name(one.proposal.index), one.proposal.rollout.to_bytes())
    return buffer.getvalue()


def unpack(blob: bytes) -> tuple[list[tuple[Rollout, float]], list[Landed]]:
    """Read what pack() wrote."""
    if not blob:
        return [], []
    from arl_core.policy.rollout import Rollout

    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        rewards = json.loads(archive.read("rewards.json"))
        pending = [(Rollout.from_bytes(archive.read(f"{i:04d}")), reward) for i, reward in enumerate(rewards)]
        told = json.loads(archive.read("landed.json")) if "landed.json" in archive.namelist() else []
        landed = [_from_json(one, Rollout.from_bytes(archive.read(_name(one["index"])))) for one in told]
    return pending, landed


def _name(index: int) -> str:
    return f"landed/{index:05d}"


def _to_json(one: Landed) -> dict[str, Any]:
    proposal = one.proposal
    return {
        "index": proposal.index,
        "parent_index": proposal.parent_index,
        "incumbent_value": proposal.incumbent_value,
        "edit": dataclasses.asdict(proposal.edit),
        "policy_step": proposal.policy_step,
        "costs": proposal.costs.finished(),
        "result": one.result.to_json(),
    }


def _from_json(told: dict[str, Any], rollout: Rollout) -> Landed:
    fields = dict(told)
    result = RunResult.from_json(fields.pop("result"))
    edit = Patch(**{**fields.pop("edit"), "repairs": tuple(told["edit"]["repairs"])})
    return Landed(
        Proposal(**fields | {"edit": edit, "rollout": rollout, "costs": Costs.resumed(told["costs"])}), result
    )
