"""A small process above the host, so that nothing outlives it: not even when the host itself is killed.

guard (waits)
 └── host (trusted, holds the data)
      ├── zygote (warm interpreter, holds no data)
      └── candidate or scoring worker, and whatever it started

The kernel ends zygote and candidate with the host (PR_SET_PDEATHSIG); what a candidate started itself becomes the guard's
child and is ended by it. The guard also ends a host that does not leave when its caller has gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from frozen_env.runtime import processes

LEAVE_S = 20.0  # a host ends its candidate and leaves well within this when its caller has gone


def guarded(host: Callable[[], int]) -> int:
    """Run `host` in a child and return its exit code, once nothing of it is left. Call before anything large is imported."""
    processes.adopt_orphans()
    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_host(host, guard_pid)
    for sign in (signal.SIGINT, signal.SIGTERM):  # a SIGTERM to us ends the host, which then tidies up
        signal.signal(sign, lambda number, _frame: _pass_on(pid, number))
    _wait(pid)
    _, status = os.waitpid(pid, 0)
    processes.kill_all_descendants()
    return abs(os.waitstatus_to_exitcode(status))


def _be_host(host: Callable[[], int], guard_pid: int) -> NoReturn:
    code = 1
    try:
        processes.die_with_parent(guard_pid)
        code = host()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int) -> None:
    """Return when the host has ended, or has been ended because its caller went away and it stayed."""
    host_fd = os.pidfd_open(pid)
    os.close(1)  # the caller waits for the end of this pipe; the host holds it alone
    poll = select.poll()
    poll.register(host_fd, select.POLLIN)
    poll.register(0, 0)  # only POLLHUP: what the caller says is for the host
    if host_fd not in [fd for fd, _ in poll.poll()]:
        poll.unregister(0)
        if not poll.poll(LEAVE_S * 1000):
            os.kill(pid, signal.SIGKILL)
    os.close(host_fd)


def _pass_on(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
