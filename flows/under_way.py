"""Which runs are under way, as files: a run under which its campaign died twice is not begun a third time.

A program that takes its machine down (memory, a driver) would otherwise be proposed again by the same policy from the same state,
night after night. A file stands for a run from its begin to its end, however it ends; what is there before a run begins was
left by a campaign that was killed, or whose host kept dying, in the middle of it. Nodes count for themselves (nodes.py).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from frozen_env.contract import Cause, Ending, RunResult

if TYPE_CHECKING:
    from flows.slots import Order

MOST_DEATHS = 2
KEPT = 64  # files of runs that nobody asked for again


class UnderWay:
    """A folder with one small file for each run; None: nothing is written down, and nothing refused."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is not None and folder.exists():
            oldest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in oldest_first[:-KEPT]:
                path.unlink(missing_ok=True)

    def refuses(self, order: Order) -> RunResult | None:
        """Return what becomes of a run that has cost too many campaigns' lives; None for one that may begin."""
        died = self._died(order)
        if died < MOST_DEATHS:
            return None
        self.end(order)
        reason = f"the campaign died {died} times while it ran; it is not begun again"
        return RunResult(Ending.CRASHED, Cause.ABORTED, reason, seed=order.seed)

    def begin(self, order: Order) -> None:
        """Write a run down, on disk when this returns: a death of the whole machine counts too."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = str(self._died(order) + 1)
        partial = self._path(order).with_suffix(".partial")
        with partial.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path(order))

    def end(self, order: Order) -> None:
        """Forget a run that has ended, or that was ended by us."""
        if self.folder is not None:
            self._path(order).unlink(missing_ok=True)

    def _died(self, order: Order) -> int:
        if self.folder is None:
            return 0
        try:
            return int(self._path(order).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _path(self, order: Order) -> Path:
        assert self.folder is not None
        key = hashlib.sha256(f"{order.seed}\0{order.source}".encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:24]
