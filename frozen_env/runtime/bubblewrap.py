"""Where the kernel's Landlock is too old: the system program `bwrap` (bubblewrap), with namespaces instead.

Slower to start than a fork of the warm interpreter: torch is imported anew, within the start-up allowance.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from frozen_env.runtime import gpus, hiding, toolchain
from frozen_env.runtime.launch import Order
from frozen_env.spec import EnvironmentSpec

ROOT = Path(__file__).resolve().parents[2]
# No network, own processes, own IPC; nothing of the file system but what is bound below; ends with its parent.
NAMESPACES = ("--unshare-all", "--die-with-parent", "--as-pid-1", "--clearenv", "--cap-drop", "ALL")


def works() -> bool:
    """Say whether bwrap is installed and may make its namespaces here."""
    program = shutil.which("bwrap")
    if program is None:
        return False
    attempt = [program, *NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "/bin/true"]
    try:
        return subprocess.run(attempt, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def command(order: Order, spec: EnvironmentSpec) -> list[str]:
    """The command line that runs one child of the given order."""
    from frozen_env.runtime import sandbox

    found = gpus.listed() if spec.device == "cuda" else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [path for path in gpus.writable_paths(visible, found) if path.startswith("/dev/")]
    readable = [
        *sandbox.readable_paths(),
        *order.readable,
        *gpus.readable_paths(visible, found),
        *toolchain.readable_paths(spec.device),
        *_interpreter(),
        str(ROOT / "frozen_env"),
    ]
    words = [shutil.which("bwrap") or "bwrap", *NAMESPACES, "--proc", "/proc", "--dev", "/dev"]
    for name in toolchain.names(spec.device):  # links, which have no place of their own in an empty root
        words += ["--ro-bind-try", name, name]
    for path in readable:
        if not path.startswith(("/proc/", "/dev/")):
            words += ["--ro-bind-try", path, path]
    for path in devices:
        words += ["--dev-bind", path, path]
    for key, value in {
        "HOME": order.scratch,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(spec.threads),
        **toolchain.IN_PROCESS,
    }.items():
        words += ["--setenv", key, value]
    if visible is not None:
        words += ["--setenv", "CUDA_VISIBLE_DEVICES", visible]
    for path in hiding.aliases(order.hidden, sandbox.readable_paths()):
        words += ["--tmpfs", path, "--remount-ro", path]
    words += ["--bind", order.scratch, order.scratch, "--chdir", order.scratch]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--"]  # files there would be memory that nobody counts
    return [*words, sys.executable, "-m", "frozen_env.runtime.inside", json.dumps(spec.to_json()), order.to_json()]


def _interpreter() -> list[str]:
    """The interpreter by every name on the way to it: a virtual environment's is a link, often to a link."""
    names = [sys.executable]
    while os.path.islink(names[-1]):
        names.append(os.path.join(os.path.dirname(names[-1]), os.readlink(names[-1])))
    return names


def become(order: Order, spec: EnvironmentSpec, buffers: int) -> NoReturn:
    """Turn this process into the confined child; its open files 0 to 3 and the buffers from 4 on stay open."""
    for fd in range(4 + buffers):
        os.set_inheritable(fd, True)
    words = command(order, spec)
    os.execv(words[0], words)
