"""Resident memory and disk of a campaign over thousands of experiments: neither may grow with their number.

python -m bench.soak --experiments 2000 --json

The real loop (Prefect, DuckDB, MLflow, retention, a tiny random policy that samples and learns) in one process, around a
stand-in that answers for the candidates at once; edits move a constant, so every one of them runs. Prints resident
memory along the way. By the quarter mark caches of a fixed size have filled; the figures are about what comes after it: the
slope of a straight line through the marks, and the difference between the highest mark and the first of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKS = 20
RECENT = 100  # experiments whose folders and artifacts stay, so that a soak sees many of them go
MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
SETTINGS = {
    "policy.model": "tiny-random",
    "confirm.enabled": False,
    "policy.threads": 1,
    "policy.max_new_tokens": 96,
    "policy.epochs": 1,
    "environment.budget_s": 1.0,
    "environment.check_every_s": 0.25,
    "retention.recent": RECENT,
    "retention.best": 20,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        figures = soak(Path(folder), options.experiments)
    if options.json:
        print(json.dumps(figures))
    return 0


def soak(folder: Path, experiments: int) -> dict[str, Any]:
    """Run the campaign in this process and return its figures."""
    import flows.mortal
    import flows.research
    import flows.slots
    from bench.stand_ins import SleepingHost, running_edits

    class AtOnce(SleepingHost):
        """A host that answers without sleeping."""

        def run(self, source: str, *, seed: int, on_event: Any = None, **named: Any) -> Any:
            from bench.answers import answer

            place = Path(named["place"])
            place.mkdir(parents=True, exist_ok=True)
            (place / "log.txt").write_text("step 1\n" * 100)
            return answer(source, seed, self.spec.budget_s)

    marks: list[tuple[int, float, float]] = []
    heaps: dict[str, list[float]] = {}
    waiting: list[int] = []
    began_s = time.monotonic()
    take_in = flows.research.take_in

    def watch(session: Any, stop: Any, experiment: Any) -> None:
        take_in(session, stop, experiment)
        if experiment.index % max(1, experiments // MARKS) == 0:
            mark = (experiment.index, resident_mb(), disk_mb(folder, ("artifacts", "campaigns")))
            marks.append(mark)
            waiting.append(events_waiting())
            heaps[str(experiment.index)] = [round(mb, 1) for mb in heap_mb()]
            seconds = time.monotonic() - began_s
            print(
                f"{mark[0]:6d} experiments  {mark[1]:7.1f} MB resident  {mark[2]:6.1f} MB files  {seconds:.0f} s  "
                f"heap {heaps[str(experiment.index)]}  {waiting[-1]} events wait for the Prefect server",
                flush=True,
            )

    flows.slots.Host = AtOnce  # type: ignore[misc,assignment]
    flows.research.take_in = watch
    settings = SETTINGS | {"memory": str(folder / "memory.duckdb"), "iterations": experiments}
    flows.mortal.make_servers_mortal()
    with running_edits():
        found = flows.research.research("embedded", settings=settings)
    settled_marks = [(index, resident) for index, resident, _ in marks if index >= experiments // 4]
    return {
        "experiments": sum(found["statuses"].values()),
        "resident_mb": {str(index): round(resident, 1) for index, resident, _ in marks},
        "files_mb": {str(index): round(files, 2) for index, _, files in marks},
        "heap_in_use_and_free_mb": heaps,
        "growth_kb_per_experiment": round(1024 * slope(settled_marks), 2),
        "highest_above_quarter_mb": round(max(mb for _, mb in settled_marks) - settled_marks[0][1], 1),
        "most_events_waiting": max(waiting),
        "database_mb": {
            "memory": round((folder / "memory.duckdb").stat().st_size / 2**20, 1),
            "mlflow": round((folder / "mlflow.db").stat().st_size / 2**20, 1),
        },
        "seconds": round(time.monotonic() - began_s),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line. ValueError for fewer than two points."""
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope


def events_waiting() -> int:
    """Return how many events Prefect has not handed to its server yet: each holds its task's arguments."""
    from prefect.events.worker import EventsWorker

    workers: dict[Any, Any] = EventsWorker._instances  # type: ignore[misc]
    return sum(one._queue.qsize() for one in workers.values())


def heap_mb() -> tuple[float, float]:
    """Return what glibc's malloc has handed out and what it holds free, in MB: growth of the first is kept memory, of the
    second fragmentation. Python's small objects and DuckDB's own allocator are in neither. (0, 0) without glibc.

    Source: https://man7.org/linux/man-pages/man3/mallinfo.3.html
    """
    try:
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0.0, 0.0
    mallinfo.restype = MallInfo
    found = mallinfo()
    return (found.uordblks + found.hblkhd) / 2**20, found.fordblks / 2**20


class MallInfo(ctypes.Structure):
    """`struct mallinfo2`: sizes in bytes."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def disk_mb(folder: Path, names: tuple[str, ...]) -> float:
    files = (path for name in names for path in (folder / name).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / 2**20


if __name__ == "__main__":
    sys.exit(main())
