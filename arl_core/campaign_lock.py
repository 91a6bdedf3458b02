"""One campaign at a time on a memory: a lock file that the kernel gives back with the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from arl_core.errors import CampaignLocked, MemoryFileError
from arl_core.records import utc_now

_held: set[int] = set()  # lock files that this process holds


@contextlib.contextmanager
def campaign_lock(memory_path: str | Path) -> Iterator[Path]:
    """Hold the right to run a campaign on this memory: flock on `<memory>.lock`; the kernel ends it with the process.

    The file stays behind: removing it would let two campaigns hold two files of one name. Raises CampaignLocked,
    naming the holder, when another campaign (in this process too) has it; MemoryFileError when it cannot be opened.
    """
    memory_path = Path(memory_path).resolve()
    path = memory_path.with_name(memory_path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MemoryFileError(f"cannot open the campaign lock {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise MemoryFileError(f"cannot lock {path}: {error.strerror}") from error
            raise CampaignLocked(_who_holds(descriptor, memory_path)) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        _held.add(descriptor)
        try:
            yield path
        finally:
            _held.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a child's copy too, if one was forked this instant
    finally:
        os.close(descriptor)


def _who_holds(descriptor: int, memory_path: Path) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        pid, text = holder["pid"], f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the holder is just writing its name
        pid, text = "PID", "another process"
    return (
        f"a campaign is running on {memory_path} already: {text}; "
        f"wait for it, end it with `kill -TERM {pid}`, or give this one another memory"
    )


def _forget_locks() -> None:
    """A forked child must not keep a dead campaign's lock alive; closing its copy leaves the parent's lock alone."""
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_locks)
