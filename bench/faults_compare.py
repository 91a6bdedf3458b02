"""Is a campaign that was killed and resumed the same as one that was not? Every field but identity, times and costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from arl_core.memory import Memory
from arl_core.policy import checkpoint
from arl_core.records import Experiment, source_hash
from arl_core.repeats import Repeat, Repeats, Role
from flows.unsettled import unpack
from frozen_env.contract import Cause

APART = ("campaign_id", "created_at", "costs")
SECONDS = ("update_seconds",)


def read(place: Path) -> dict[str, Any]:
    """Return what two campaigns of the same seeds must share."""
    memory = Memory(place / "memory.duckdb")
    campaign = memory.get_campaign("latest")
    state = memory.state(campaign.id)
    assert state is not None
    experiments = [_comparable(one.to_json()) for one in memory.experiments(campaign.id)]
    rollouts = [(rollout.completion, rollout.seed, reward) for rollout, reward in unpack(state.blob)[0]]
    found = {
        "experiments": experiments,
        "policy_step": state.values["policy_step"],
        "policy": _policy(place, campaign.id, state.values["checkpoints"][-1][0]),
        "pending": rollouts,
        "status": campaign.status,
        "mlflow": _mlflow(place, campaign.id),
    }
    memory.close()
    return found


def committed(place: Path) -> set[int]:
    """Indices in the memory now, read as a resuming campaign would read them."""
    path = place / "memory.duckdb"
    if not path.exists():
        return set()
    memory = Memory(path)
    try:
        return {one.index for one in memory.experiments("latest", whole=False)} if memory.campaigns() else set()
    finally:
        memory.close()


def killed_candidates(place: Path) -> frozenset[str]:
    """`PROGRAM:SEED` of the runs that the memory says were killed: as the candidate's doing, for it cannot know better."""
    memory = Memory(place / "memory.duckdb")
    try:
        if not memory.campaigns():
            return frozenset()
        campaign = memory.get_campaign("latest")
        # A re-run that was killed is told in its experiment's reason too, but there the cause is none of the first run's.
        first = [one for one in memory.experiments(campaign.id, whole=False) if one.cause is Cause.SIGNAL]
        again = Repeats(memory).of(campaign.id)
    finally:
        memory.close()
    runs: list[Experiment | Repeat] = [*first, *again]
    return frozenset(f"{one.source_hash}:{one.seed}" for one in runs if "SIGKILL" in one.reason)


def against(truth: dict[str, Any], place: Path) -> tuple[int, int, list[str]]:
    """Return (experiments missing in the end, experiments there twice, differences as sentences)."""
    found = read(place)
    memory = Memory(place / "memory.duckdb")
    campaigns = len(memory.campaigns())
    memory.close()
    indices = Counter(one["index"] for one in found["experiments"])
    lost = len({one["index"] for one in truth["experiments"]} - set(indices))
    twice = sum(count - 1 for count in indices.values())
    runs = Counter(name for name, _ in found["mlflow"])
    twice += sum(count - 1 for count in runs.values())
    differences = [] if campaigns == 1 else [f"{campaigns} campaigns instead of one"]
    for mine, theirs in zip(found["experiments"], truth["experiments"], strict=False):
        names = [name for name in theirs if mine[name] != theirs[name]]
        if names:
            differences.append(
                f"experiment {theirs['index']} differs in {', '.join(names)}: {mine[names[0]]!r:.200} {mine['reason']:.200}"
            )
    differences += [
        _described(found[name], truth[name]) if name == "policy" else f"{name} differs"
        for name in truth
        if name != "experiments" and found[name] != truth[name]
    ]
    return lost, twice, differences


def waiting(place: Path) -> dict[int, str]:
    """Programs by index of the runs that wait for their second look in the memory now."""
    path = place / "memory.duckdb"
    if not path.exists():
        return {}
    memory = Memory(path)
    try:
        state = memory.state("latest") if memory.campaigns() else None
        landed = unpack(state.blob)[1] if state else []
        return {one.proposal.index: source_hash(one.proposal.edit.source) for one in landed}
    finally:
        memory.close()


def by_itself(place: Path, count: int, waited: dict[int, str]) -> tuple[int, int, list[str]]:
    """The same of a campaign of `count` experiments that has no equal: what must hold whatever came side by side.

    `waited` are the runs that were found waiting for their second look after a kill, by index.
    """
    memory = Memory(place / "memory.duckdb")
    campaigns = memory.campaigns()
    campaign = campaigns[-1]
    programs = {one.index: one.source_hash for one in memory.experiments(campaign.id)}
    looked_at = {one.index: one.source_hash for one in Repeats(memory).of(campaign.id) if one.role is Role.FIRST}
    memory.close()
    runs = _mlflow(place, campaign.id)
    lost = len(set(range(count)) - set(programs))
    twice = sum(number - 1 for number in Counter(name for name, _ in runs).values())
    differences = [] if len(campaigns) == 1 else [f"{len(campaigns)} campaigns instead of one"]
    differences += [
        f"the run of experiment {index} had ended, and another program stands there"
        for index, program in sorted((looked_at | waited).items())
        if programs.get(index) != program
    ]
    differences += [f"experiment {index} still waits for its second look" for index in waiting(place)]
    differences += [f"MLflow lacks experiment {index}" for index in programs if f"experiment {index}" not in dict(runs)]
    differences += [f"MLflow's run of {name} still runs" for name, status in runs if status == "RUNNING"]
    return lost, twice, differences


def _comparable(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in APART}
    if "update" in kept["extra"]:
        update = {name: value for name, value in kept["extra"]["update"].items() if name not in SECONDS}
        kept["extra"] = kept["extra"] | {"update": update}
    return kept


def _policy(place: Path, campaign_id: str, name: str) -> dict[str, bytes]:
    """Parameters and optimizer, the bytes of each tensor by its name; statistics and recent rewards under STATE."""
    folder = place / "campaigns" / campaign_id / "policy" / name
    tensors = load_file(folder / checkpoint.TENSORS)
    written = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
    return {**written, checkpoint.STATE: (folder / checkpoint.STATE).read_bytes()}


def _described(mine: dict[str, bytes], theirs: dict[str, bytes]) -> str:
    """Say which parts of two policies differ, and by how much as numbers of 32 bits."""
    names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    apart = [
        np.abs(np.frombuffer(mine[name], np.float32) - np.frombuffer(theirs[name], np.float32)).max()
        for name in names
        if name != checkpoint.STATE and len(mine.get(name, b"")) == len(theirs.get(name, b""))
    ]
    return f"policy differs in {len(names)} parts, at most by {max(apart, default=np.nan):.3g}: {', '.join(names[:4])}"


def _mlflow(place: Path, campaign_id: str) -> list[tuple[str, str]]:
    """(kind and index, status) of every run of the campaign, in order."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    groups = [group.experiment_id for group in client.search_experiments()]
    runs = client.search_runs(groups, f"tags.campaign = '{campaign_id}'", max_results=1000)
    return sorted((f"{run.data.tags['kind']} {run.data.tags.get('index', '')}", run.info.status) for run in runs)
