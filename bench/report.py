"""Time the report of a campaign with very many experiments, and how long it keeps a writer waiting.

    python -m bench.report --experiments 1000 --json
    -> {"seconds": {"read":, "draw_and_write":}, "longest_look_ms":, "page_kb":, "experiments":}

The campaign is invented but shaped like a real one: edits of the real target drawn as the warm start draws them, curves
of 60 reports with a forecast at each check, statuses and gains by chance. It goes through a memory file as a campaign
does. longest_look_ms is the longest time that the reader holds the file in one piece, which is what a writer would wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arl_core.edit import canonical_diff, summarise
from arl_core.memory import Memory
from arl_core.policy.synthesis import apply, draw_edit
from arl_core.records import Campaign, Experiment, State, source_hash
from arl_core.report import read, write_report
from frozen_env.contract import Cause, Report, Status, Verdict

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 20.0
REPORTS = 60
CHECKS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
IMPROVES, CRASHES, STOPS = 0.06, 0.2, 0.35  # shares of proposals
UPDATE_EVERY = 4


def invented_campaign(experiments: int, seed: int = 0) -> tuple[Campaign, list[Experiment]]:
    """Return a campaign of experiment 0 and `experiments` proposals. The same arguments give the same campaign."""
    config = {"environment": {"budget_s": BUDGET_S}, "reward": {"scale": 0.02}, "policy": {"model": "invented"}}
    campaign = Campaign(
        "invented", "embedded", config, "digest", seed, "2026-11-23T21:00:00.000+00:00", "language_model"
    )
    rng = random.Random(seed)
    source = (ROOT / "target" / "train.py").read_text(encoding="utf-8")
    made = [_experiment(0, Status.KEPT, 1.64, None, source, None, rng)]
    best = made[0]
    for index in range(1, experiments + 1):
        edited = None
        while not edited:
            blocks = draw_edit(best.source, rng)
            edited = apply(best.source, blocks) if blocks else None
        assert best.value is not None
        roll = rng.random()
        if roll < IMPROVES:
            one = _experiment(index, Status.KEPT, best.value - rng.expovariate(250), best, edited, None, rng)
        elif roll < IMPROVES + CRASHES:
            one = _experiment(index, Status.CRASHED, None, best, edited, None, rng)
        elif roll < IMPROVES + CRASHES + STOPS:
            one = _experiment(index, Status.STOPPED_EARLY, None, best, edited, rng.choice(CHECKS[:5]), rng)
        else:
            one = _experiment(index, Status.DISCARDED, best.value + rng.expovariate(40), best, edited, None, rng)
        made.append(one)
        best = one if one.status is Status.KEPT else best
    return campaign, made


def _experiment(
    index: int,
    status: Status,
    value: float | None,
    parent: Experiment | None,
    source: str,
    stopped_at: float | None,
    rng: random.Random,
) -> Experiment:
    incumbent = parent.value if parent else None
    end = value if value is not None else (incumbent or 1.6) + rng.uniform(0.02, 0.2)
    last = 0.0 if status is Status.CRASHED else stopped_at or 1.0

    def loss(fraction: float) -> float:
        return 2.2 * end + 4 * math.pow(fraction + 0.02, -0.3) - 4 + rng.gauss(0, 0.05)

    fractions = [k / REPORTS for k in range(1, int(REPORTS * last) + 1)]
    reports = tuple(Report(round(600 * at), BUDGET_S * at, at, loss(at), 1e-3) for at in fractions)
    verdicts = tuple(
        Verdict(
            at == stopped_at,
            "looks hopeless",
            "ours",
            at,
            end + rng.gauss(0, 0.03),
            end - 0.06,
            end + 0.06,
            0.1,
            incumbent,
        )
        for at in CHECKS
        if parent is not None and at <= last and (stopped_at or at < 1)
    )
    update = {"update": {"entropy": 0.9 - index / 5000, "kl_ref": index / 9000, "approx_kl": 0.01}}
    training_s = BUDGET_S * last
    costs = {"propose": 5.0, "startup": 0.2, "training": training_s, "scoring": 0.4, "iteration": training_s + 6.1}
    return Experiment(
        "invented",
        index,
        status,
        parent_index=parent.index if parent else None,
        cause=Cause.EXCEPTION if status is Status.CRASHED else Cause.NONE,
        reason="RuntimeError: shapes do not match" if status is Status.CRASHED else "",
        summary=summarise(parent.source, source) if parent else "the untouched target",
        diff=canonical_diff(parent.source, source) if parent else "",
        source=source,
        source_hash=source_hash(source),
        metric="val_bpb",
        value=value,
        estimate=end if status is Status.STOPPED_EARLY else None,
        incumbent_value=incumbent,
        reward=None if parent is None else rng.uniform(-0.5, 0.2),
        reports=reports,
        verdicts=verdicts,
        costs=costs,
        tokens=400_000,
        environment_digest="digest",
        sandbox="invented",
        created_at=f"2026-11-{23 + index // 3600:02}T{index // 150 % 24:02}:{index // 3 % 60:02}:{index % 3 * 20:02}.000+00:00",
        policy_step=index // UPDATE_EVERY,
        extra=update if index and index % UPDATE_EVERY == 0 else {},
    )


@contextlib.contextmanager
def looks_timed(memory: Memory) -> Iterator[list[float]]:
    """Collect the seconds of each time that this memory has its file open."""
    taken: list[float] = []
    attach, detach, opened = memory._attach, memory._detach, [0.0]

    def timed_attach(read_only: bool) -> Any:
        engine = attach(read_only)
        opened[0] = time.perf_counter()
        return engine

    def timed_detach(engine: Any) -> None:
        detach(engine)
        taken.append(time.perf_counter() - opened[0])

    memory._attach, memory._detach = timed_attach, timed_detach  # type: ignore[method-assign, assignment]
    try:
        yield taken
    finally:
        memory._attach, memory._detach = attach, detach  # type: ignore[method-assign]


def measure(folder: Path, experiments: int, seed: int) -> dict[str, Any]:
    path = folder / "memory.duckdb"
    campaign, made = invented_campaign(experiments, seed)
    writer = Memory(path)
    writer.create_campaign(campaign)
    for one in made:
        writer.commit_iteration(one, State())
    writer.close()
    began_s = time.perf_counter()
    memory = Memory(path, read_only=True)
    with looks_timed(memory) as looks:
        data = read(memory, campaign.id)
    read_s = time.perf_counter() - began_s
    page = write_report(data, folder / "report")
    return {
        "seconds": {"read": round(read_s, 2), "draw_and_write": round(time.perf_counter() - began_s - read_s, 2)},
        "longest_look_ms": round(1000 * max(looks), 1),
        "page_kb": round(page.stat().st_size / 1024),
        "experiments": len(data.experiments),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep memory and report here instead of a temporary folder")
    parser.add_argument("--json", action="store_true", help="only the object, on one line")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-report-")))
        result = measure(folder, options.experiments, options.seed)
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
