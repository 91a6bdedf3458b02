"""Which edits are being run, as files: a run under which its campaign died twice is not begun a third time.

A program that takes its machine down (memory, a driver) would otherwise be proposed again by the same policy from the same
state, night after night. A file stands for a run from its begin to its end, however it ends; what is there before a run
begins was left by a campaign that was killed, or whose host kept dying, in the middle of it. With slots side by side any
of those under way may have done it, so a run that has such a past runs alone: what dies then is its doing. Only edits are
to blame: not the untouched target, nor a re-run of an incumbent. Nodes count for themselves (nodes.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arl_core.durable import fsync
from frozen_env.contract import Cause, Ending, RunResult

if TYPE_CHECKING:
    from flows.slots import Order

MOST_DEATHS = 2
KEPT = 64  # files of runs that nobody asked for again


class UnderWay:
    """A folder with one small file for each run; None: nothing is written down, and nothing refused."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._turn = threading.Condition()
        self._running, self._suspects = 0, 0  # suspects: those with a past, waiting or running
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            fsync(folder.parent)
            oldest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in oldest_first[:-KEPT]:
                path.unlink(missing_ok=True)

    def refuses(self, order: Order) -> RunResult | None:
        """Return what becomes of a run that has cost too many campaigns' lives; None for one that may begin."""
        died = self._died(order)
        if died < MOST_DEATHS:
            return None
        reason = f"the campaign died {died} times while it ran; it is not begun again"
        return RunResult(Ending.CRASHED, Cause.ABORTED, reason, seed=order.seed)

    @contextlib.contextmanager
    def turn(self, order: Order) -> Iterator[None]:
        """Wait until a run may begin: one with a past when nothing runs, any other when no such one waits or runs."""
        suspect = self._died(order) > 0
        with self._turn:
            self._suspects += suspect
            self._turn.wait_for(lambda: self._running == 0 if suspect else self._suspects == 0)
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._suspects -= suspect
                self._turn.notify_all()

    def begin(self, order: Order) -> None:
        """Write a run down, on disk when this returns: a death of the whole machine counts too."""
        if self.folder is None or not order.blamed:
            return
        path, text = self._path(order), str(self._died(order) + 1)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync(self.folder)

    def end(self, order: Order) -> None:
        """Forget a run that has ended, or that was ended by us."""
        if self.folder is not None:
            self._path(order).unlink(missing_ok=True)

    def _died(self, order: Order) -> int:
        if self.folder is None or not order.blamed:
            return 0
        try:
            return int(self._path(order).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _path(self, order: Order) -> Path:
        """One experiment's run of one program on one seed: what `none` proposes again and again is a run of its own each time."""
        assert self.folder is not None
        words = f"{order.index}\0{order.place.name}\0{order.seed}\0{order.source}"
        return self.folder / hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]
