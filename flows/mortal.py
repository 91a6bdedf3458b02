"""Prefect's ephemeral server, made mortal: it ends with the campaign that started it, even one killed with SIGKILL.

Prefect starts it as a process and ends it at exit, which a SIGKILL leaves out: a server would stay behind with each kill.
`python -m flows.mortal MODULE WORDS…` runs a module, such as uvicorn, and leaves as soon as its parent is another one.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import time
from typing import Any

POLL_S = 1.0


def make_servers_mortal() -> None:
    """Have Prefect's ephemeral servers of this process run under this module."""
    from prefect.server.api import server

    class Mortal:
        """The module `subprocess`, as Prefect's server uses it, but for how uvicorn is begun."""

        def __getattr__(self, name: str) -> Any:
            return getattr(subprocess, name)

        def Popen(self, args: list[str], **named: Any) -> subprocess.Popen[Any]:  # noqa: N802
            plain = [sys.executable, "-m", "uvicorn"]
            if args[:3] == plain:
                args = [sys.executable, "-m", "flows.mortal", "uvicorn", *args[3:]]
                named.setdefault("cwd", os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            return subprocess.Popen(args, **named)

    server.subprocess = Mortal()  # type: ignore[assignment, attr-defined]


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
