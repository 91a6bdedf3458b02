"""One campaign at a time on a memory: a lock file that the kernel gives back with the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from arl_core.errors import CampaignLocked, MemoryFileError
from arl_core.records import utc_now

BUSY = (errno.EWOULDBLOCK, errno.EACCES)  # somebody else has the lock
LOOK_S = 0.05  # longer than a look at the lock lasts (is_held)

_held: set[int] = set()  # lock files that this process holds


@contextlib.contextmanager
def campaign_lock(memory_path: str | Path) -> Iterator[Path]:
    """Hold the right to run a campaign on this memory: flock on `<memory>.lock`; the kernel ends it with the process.

    The file stays behind: removing it would let two campaigns hold two files of one name. Raises CampaignLocked,
    naming the holder, when another campaign (in this process too) has it; MemoryFileError when it cannot be opened.
    """
    memory_path = Path(memory_path).resolve()
    path = _lock_file(memory_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MemoryFileError(f"cannot open the campaign lock {path}: {error.strerror}") from error
    try:
        try:
            taken = _take(descriptor)
        except OSError as error:
            raise MemoryFileError(f"cannot lock {path}: {error.strerror}") from error
        if not taken:
            raise CampaignLocked(_who_holds(descriptor, memory_path))
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


def is_held(memory_path: str | Path) -> bool:
    """Whether anybody, in this process too, holds the right to run a campaign on this memory. Makes and writes nothing.

    To ask is to share the lock for an instant, for which a campaign that begins then waits. Where no lock file is, nobody
    holds it; where the file may not be read it cannot be told, and the answer is yes.
    """
    try:
        path = _lock_file(Path(memory_path).resolve())
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return True
    except OSError:
        return False
    try:
        # Shared: two who look do not take each other for a holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a child's copy too, if one was forked this instant
    except OSError as error:
        return error.errno in BUSY  # else a file system without locks, on which no campaign begins
    finally:
        os.close(descriptor)
    return False


def _lock_file(memory_path: Path) -> Path:
    return memory_path.with_name(memory_path.name + ".lock")


def _take(descriptor: int) -> bool:
    """Whether the lock is ours now. A second try, as who is in the way may only be looking. OSError where nothing can be locked."""
    for wait_s in (LOOK_S, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in BUSY:
                raise
        time.sleep(wait_s)
    return False


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
