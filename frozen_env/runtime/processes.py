"""Process trees on Linux: adopt orphans, read what a tree uses, end a tree so that nothing survives it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from frozen_env.contract import SandboxUnavailable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make every orphaned descendant our child, so that a double fork cannot leave the tree."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` ends; leave at once when it has ended already."""
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def children(pid: int) -> list[int]:
    """Direct children of every thread of `pid`; empty when it has gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def require_sight_of(child: int) -> None:
    """Raise SandboxUnavailable when this kernel does not tell that `child` is ours: limits and the final kill would see nobody."""
    if child not in children(os.getpid()):
        raise SandboxUnavailable(
            "this kernel does not tell which processes a process has started (/proc/PID/task/TID/children is missing or empty), "
            "so that a candidate could be neither limited nor ended. Mount /proc, or use a kernel with CONFIG_PROC_CHILDREN=y, "
            "as distributions build it; sandbox=off needs it, too."
        )


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; parents before children."""
    found: list[int] = []
    queue = children(pid)
    while queue:
        child = queue.pop(0)
        found.append(child)
        queue += children(child)
    return found


def memory_mb(pids: Iterable[int]) -> float:
    """Memory that these processes fill, in MiB: private and shared pages, and what was swapped out; files do not count.

    Quick, and at most too high: a page that two of them share counts twice. See exact_memory_mb().
    """
    return sum(_kilobytes(pid, "status", ("RssAnon:", "RssShmem:", "VmSwap:")) or 0 for pid in pids) / 1024


def exact_memory_mb(pids: Iterable[int]) -> float:
    """As memory_mb(), shared pages divided among those who share them. Milliseconds for each GiB.

    A process that does not let itself be looked into (the program that it has become cannot be read, say) counts as there.
    """
    total_mb = 0.0
    for pid in pids:
        found = _kilobytes(pid, "smaps_rollup", ("Pss_Anon:", "Pss_Shmem:", "SwapPss:"))
        total_mb += memory_mb([pid]) if found is None else found / 1024
    return total_mb


def _kilobytes(pid: int, file: str, names: tuple[str, ...]) -> int | None:
    """The sum of these lines; None when the file cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(names))
    except (OSError, ValueError):
        return None


def processor_s(pids: Iterable[int]) -> dict[tuple[int, int], float]:
    """Seconds of processor time that each process took, with those of its children that it has waited for.

    By process id and start, as ids come again. Who has gone is left out.
    """
    found: dict[tuple[int, int], float] = {}
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (
                Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            )  # man 5 proc, from 3
            ticks = sum(int(word) for word in words[11:15])
            found[pid, int(words[19])] = ticks / os.sysconf("SC_CLK_TCK")
    return found


@dataclass
class ProcessorTime:
    """What a tree takes in all, of processes that have gone, too. At most too high: who was waited for counts by itself and
    with its parent. A process that came and went between two looks counts as `unseen_s`: its parent need not wait for it."""

    unseen_s: float = 0.0
    _seen_s: dict[tuple[int, int], float] = field(default_factory=dict)
    _not_admitted: int | None = None  # who was there already

    def look(self, pids: Iterable[int], admitted: int) -> float:
        """Return the seconds of a processor that were taken so far. `admitted`: processes that were let start, ever."""
        for process, used_s in processor_s(pids).items():
            self._seen_s[process] = max(used_s, self._seen_s.get(process, 0.0))
        if self._not_admitted is None:
            self._not_admitted = len(self._seen_s) - admitted
        unseen = max(0, admitted - (len(self._seen_s) - self._not_admitted))
        return sum(self._seen_s.values()) + unseen * self.unseen_s


def threads(pids: Iterable[int]) -> int:
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def kill_all_descendants(spare: int | None = None, limit_s: float = 10.0) -> int:
    """SIGKILL and reap every descendant of this process but `spare`; needs adopt_orphans(). Return how many were reaped.

    A tree that keeps forking is stopped first (a stopped process cannot fork) and killed then. Raises TimeoutError when
    something is still alive after limit_s (an uninterruptible process in the kernel, say).
    """
    reaped, me, deadline_s = 0, os.getpid(), time.monotonic() + limit_s
    while alive := [pid for pid in descendants(me) if pid != spare]:
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
        reaped += _reap(alive, deadline_s)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes {alive} did not end within {limit_s} s of SIGKILL")
    return reaped


def _reap(killed: list[int], deadline_s: float) -> int:
    """Wait for those of them that are our children; theirs become ours when they have gone, and are the next round's."""
    waiting, reaped = set(killed), 0
    while waiting and time.monotonic() < deadline_s:
        for pid in tuple(waiting):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                waiting.discard(pid)
                continue
            if ended:
                waiting.discard(pid)
                reaped += 1
        if waiting:
            time.sleep(0.001)
    return reaped


def name(pid: int) -> str:
    """The program's name as the kernel knows it; '' when the process has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""
