"""Time per iteration that is neither policy, candidate start-up, training nor scoring: what the loop itself costs.

python -m bench.overhead --iterations 20 --json

Runs a real campaign (Prefect, DuckDB, MLflow, host and sandbox) with a tiny random policy and a two-second budget in a
temporary folder, and reads the parts from its memory. What that policy writes would not run, so each of its edits is
exchanged for one that moves a constant: every iteration trains, is scored, and has a curve to be kept. The first
iteration is left out: it loads the policy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from arl_core.memory import Memory
from arl_core.records import Experiment
from bench.stand_ins import running_edits
from flows.research import research

NOT_OVERHEAD = ("propose", "update", "checkpoint", "load_policy", "startup", "training", "scoring", "confirm")
SETTINGS = {
    "policy.model": "tiny-random",
    "environment.budget_s": 2.0,
    "environment.check_every_s": 0.2,
    "environment.grace_s": 3.0,
    "target.DEPTH": 1,
    "target.WIDTH": 32,
    "target.HEAD_DIM": 16,
    "target.BATCH_ROWS": 2,
    "stopping.rule": "ours",
    "confirm.enabled": False,  # a re-run is training, not overhead
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        memory_path = Path(folder) / "mlruns" / "memory.duckdb"
        settings = SETTINGS | {"memory": str(memory_path), "iterations": options.iterations + 1}
        with running_edits():
            found = research("embedded", settings=settings)
        experiments = Memory(memory_path, read_only=True).experiments(found["campaign"])
    figures = overhead(experiments[2:])
    for part, seconds in sorted(figures["parts"].items(), key=lambda item: -item[1]):
        print(f"{part:18} {seconds:8.4f} s")
    print(f"overhead per iteration: median {figures['seconds_per_iteration']['median']:.3f} s")
    if options.json:
        print(json.dumps(figures))
    return 0


def overhead(experiments: list[Experiment]) -> dict[str, dict[str, float]]:
    """Return the median and 95th percentile of the loop's own seconds, and the median of every part.

    Parts that are not the loop's are listed too, marked with `(not counted)`; `other` is what no part accounts for.
    Raises ValueError when there is nothing to measure.
    """
    if not experiments:
        raise ValueError("no experiments to measure; use --iterations 1 or more")
    rows = []
    for one in experiments:
        costs = dict(one.costs)
        total = costs.pop("iteration") + costs.pop("before/between", 0.0)
        waited = costs.pop("run", 0.0)
        costs["host_and_messages"] = max(
            0.0, waited - sum(costs.get(part, 0.0) for part in ("startup", "training", "scoring"))
        )
        known = sum(costs.values())
        row = {part: seconds for part, seconds in costs.items() if part not in NOT_OVERHEAD}
        row["other"] = total - known
        rows.append((sum(row.values()), row, {part: costs.get(part, 0.0) for part in NOT_OVERHEAD}))
    totals = sorted(total for total, _, _ in rows)
    names = sorted({part for _, row, _ in rows for part in row})
    parts = {part: statistics.median(row.get(part, 0.0) for _, row, _ in rows) for part in names}
    parts |= {f"{part} (not counted)": statistics.median(row[part] for _, _, row in rows) for part in NOT_OVERHEAD}
    p95 = totals[min(len(totals) - 1, round(0.95 * (len(totals) - 1)))]
    return {"seconds_per_iteration": {"median": statistics.median(totals), "p95": p95}, "parts": parts}


if __name__ == "__main__":
    sys.exit(main())
