"""Process trees on Linux: adopt orphans, read a tree's memory, end a tree so that nothing survives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make every orphaned descendant our child, so that a double fork cannot leave the tree."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that forked it ends."""
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def children(pid: int) -> list[int]:
    """Direct children of every thread of `pid`; empty when it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; parents before children."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue += children(child)
    return found


def tree_memory_mb(pid: int) -> float:
    """Resident memory of `pid` and its descendants in MiB (pages shared between them count once each)."""
    pages = 0
    for member in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident, shared = Path(f"/proc/{member}/statm").read_text().split()[1:3]
            pages += int(resident) - int(shared)
    return pages * PAGE_BYTES / 2**20


def kill_all_descendants(limit_s: float = 10.0) -> int:
    """SIGKILL and reap every descendant of this process; needs adopt_orphans(). Return how many were reaped.

    A tree that keeps forking is stopped first (a stopped process cannot fork) and killed then. Raises TimeoutError when
    something is still alive after limit_s (an uninterruptible process in the kernel, say).
    """
    reaped, me, deadline_s = 0, os.getpid(), time.monotonic() + limit_s
    while alive := descendants(me):
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
        reaped += _reap(deadline_s)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes {descendants(me)} did not end within {limit_s} s of SIGKILL")
    return reaped


def _reap(deadline_s: float) -> int:
    """Wait for dead children until none is waiting; a short wait at a time, since killed children need a moment."""
    reaped = 0
    while time.monotonic() < deadline_s:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return reaped
        if pid == 0:
            if reaped and not children(os.getpid()):
                return reaped
            time.sleep(0.002)
            if not any(_is_dead(child) for child in children(os.getpid())):
                return reaped
            continue
        reaped += 1
    return reaped


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True
