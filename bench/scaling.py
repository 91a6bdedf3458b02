"""Throughput of a campaign over 1, 2 and 4 slots on nodes: a real Prefect server, workers as processes of their own.

python -m bench.scaling --slots 1,2,4 --json
python -m bench.scaling --slots 1,2,4 --confirm --json

Candidates sleep instead of computing, so that what is measured is what spreading them costs: proposing, scheduling, a
process of its own per candidate, reporting back, committing. A worker per slot. The clock runs from the commit of
experiment 0 (by then workers, server and campaign are warm) to the last commit, so each candidate's start-up counts; it is
reported apart as well: the seconds of a candidate's way that it did not sleep. With `--confirm` what looks better is run
again in pairs, one second look after the other, so campaigns do different numbers of runs: then runs per second are
compared. `slot_use` is the share of the slots' time in which a candidate slept.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from arl_core.memory import Memory
from arl_core.repeats import Repeats, Role
from bench.cluster import Cluster, cluster
from flows.surroundings import ROOT
from frozen_env.runtime import processes

SETTINGS = {
    "policy.model": "tiny-random",
    "confirm.enabled": False,
    "environment.check_every_s": 1.0,
    "stopping.rule": "none",
    "nodes.deployment": "experiment/node",
    "nodes.silence_s": 60.0,
}
CONFIRMING = {
    "confirm.enabled": True,
    "confirm.second_look": 1.0,
}  # by luck alone one candidate in five looks that much better


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--slots", default="1,2,4", help="numbers of slots; the fewest are what the others compare with"
    )
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a candidate sleeps")
    parser.add_argument("--confirm", action="store_true", help="with second looks, as campaigns have them")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    counts = [int(word) for word in options.slots.split(",")]
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder, cluster(Path(folder)) as server:
        server.deploy("bench/sleeping_node.py:experiment")
        rows = {
            count: measure(server, Path(folder), count, options.candidates, options.seconds, options.confirm)
            for count in counts
        }
    figures = speedup(rows, options.candidates)
    if options.json:
        print(json.dumps(figures))
    return 0


def measure(
    server: Cluster, folder: Path, count: int, candidates: int, seconds: float, confirm: bool = False
) -> dict[str, float]:
    """Run one campaign on `count` workers; return its seconds and runs, and the median start-up of a candidate."""
    while len(server.workers) < count:
        server.start_worker(f"node-{len(server.workers)}")
    server.wait_for_workers(count)
    memory_path = folder / f"slots-{count}" / "memory.duckdb"
    settings = SETTINGS | {
        "memory": str(memory_path),
        "parallel": count,
        "iterations": candidates,
        "environment.budget_s": seconds,
        **(CONFIRMING if confirm else {}),
    }
    code = f"import json, bench.scaling; bench.scaling.campaign(json.loads({json.dumps(settings)!r}))"
    environment = server.environment | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder / f"campaign-{count}.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            check=False,
            preexec_fn=functools.partial(processes.die_with_parent, os.getpid()),
        )
    if done.returncode:
        raise RuntimeError((folder / f"campaign-{count}.log").read_text()[-4000:])
    memory = Memory(memory_path, read_only=True)
    experiments = memory.experiments("latest")
    again = [one for one in Repeats(memory).of(memory.get_campaign().id) if one.index and one.role is not Role.FIRST]
    if len(experiments) != candidates + 1:
        raise RuntimeError(f"{len(experiments)} experiments were committed, {candidates + 1} wanted")
    at = sorted(datetime.fromisoformat(one.created_at) for one in experiments)
    row = {
        "seconds": (at[-1] - at[0]).total_seconds(),
        "runs": candidates + len(again),
        "startup_s": statistics.median(one.costs["run"] - seconds for one in experiments[1:]),
    }
    row["slot_use"] = row["runs"] * seconds / (count * row["seconds"])
    print(
        f"{count} slots: {row['seconds']:.0f} s for {candidates} candidates and {len(again)} re-runs, start-up "
        f"{row['startup_s']:.1f} s, {row['slot_use']:.0%} of the slots' time used",
        flush=True,
    )
    return row


def campaign(settings: dict[str, Any]) -> None:
    """Run one campaign in this process, its edits exchanged for ones that run, its own host a stand-in like the nodes'."""
    import flows.slots
    from bench.stand_ins import SleepingHost, running_edits
    from flows.research import research

    flows.slots.Host = SleepingHost  # type: ignore[assignment,misc]
    with running_edits():
        research("embedded", settings=settings)


def speedup(rows: dict[int, dict[str, float]], candidates: int) -> dict[str, Any]:
    """Return throughput, in runs per second, relative to the fewest slots, and the parts behind it."""
    rates = {count: row["runs"] / row["seconds"] for count, row in rows.items()}
    fewest = min(rows)
    return {
        "speedup": {str(count): round(rate / rates[fewest], 3) for count, rate in rates.items() if count != fewest},
        "runs": {str(count): row["runs"] for count, row in rows.items()},
        "slot_use": {str(count): round(row["slot_use"], 3) for count, row in rows.items()},
        "seconds": {str(count): round(row["seconds"], 1) for count, row in rows.items()},
        "startup_s": {str(count): round(row["startup_s"], 2) for count, row in rows.items()},
        "candidates": candidates,
    }


if __name__ == "__main__":
    sys.exit(main())
