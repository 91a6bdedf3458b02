"""GPUs as slots: which ones this node has, and a lock per GPU that dies with whoever trains on it.

The lock is a flock on a file. The campaign (or the node's flow) takes it and the host process inherits the descriptor:
the kernel gives the GPU back when both have gone, and a host's candidates die with it. Candidates do not inherit it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frozen_env.contract import HostError

LISTING_LIMIT_S = 30.0
KILLED_LIMIT_S = 2.0
POLL_S = 0.5


@dataclass
class HeldGpu:
    """A GPU that is ours: its name for CUDA_VISIBLE_DEVICES, and the descriptor that holds its lock."""

    name: str
    fd: int

    def close(self) -> None:
        """Give our share of the lock back; a host that inherited it keeps it until it ends."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def visible() -> list[str]:
    """Return the GPUs that candidates may use: of ARL_GPUS, of CUDA_VISIBLE_DEVICES, or all, those that answer now.

    Names are UUIDs where nvidia-smi knows them. Without nvidia-smi the two variables are believed; empty without GPU.
    """
    return _among(os.environ.get("ARL_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES")))


def seen_here() -> list[str]:
    """Return the GPUs that this process sees, whatever ARL_GPUS leaves to candidates; the first one is its "cuda"."""
    return _among(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _among(chosen: str | None) -> list[str]:
    names = None if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    present = listing()
    if present is None:
        return names or []
    if names is None:
        return list(present.values())
    known = [present.get(name, name) for name in names]
    return [name for name in known if name in present.values() or name.startswith("MIG-")]


def listing() -> dict[str, str] | None:
    """UUIDs by index of the GPUs that answer; None where there is no nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=index,uuid", "--format=csv,noheader"]
    said = ask(command, LISTING_LIMIT_S)
    if said is None:
        return {}
    rows = [line.split(",") for line in said[1].splitlines()]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[1].strip().startswith("GPU-")}


def ask(
    command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str] | None:
    """Run a command that asks a GPU; return its exit code, output and errors, None when it cannot run or takes too long."""
    try:
        asked = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )
    except OSError:
        return None
    try:
        output, errors = asked.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        asked.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # below a driver that hangs it cannot even die
            asked.communicate(timeout=KILLED_LIMIT_S)
        return None
    return asked.returncode, output, errors


def hold(names: Sequence[str], wait_s: float = 0.0, folder: Path | None = None) -> HeldGpu:
    """Lock the first of `names` that is free, waiting up to wait_s for one. Raises HostError when all stay taken."""
    folder = folder or Path(tempfile.gettempdir())
    deadline_s = time.monotonic() + wait_s
    while True:
        for name in names:
            held = _try(name, folder)
            if held is not None:
                return held
        if time.monotonic() >= deadline_s:
            raise HostError(
                f"every GPU is taken by another candidate: {', '.join(names) or 'there is none'}. Lower `parallel`, end the "
                "other campaign, name other GPUs in ARL_GPUS, or --set environment.device=cpu where no GPU is needed"
            )
        time.sleep(POLL_S)


@contextlib.contextmanager
def held_for(device: str) -> Iterator[HeldGpu | None]:
    """Hold one GPU for a run by hand; None on a CPU, or where no GPU answers. Raises HostError when all are taken."""
    names = visible() if device != "cpu" else []
    held = hold(names) if names else None
    try:
        yield held
    finally:
        if held is not None:
            held.close()


def lock_path(name: str, folder: Path) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return folder / f"autoresearch-gpu-{digest}.lock"


def _try(name: str, folder: Path) -> HeldGpu | None:
    path = lock_path(name, folder)
    # Another user's file can be locked but not opened for writing: look first, create only when there is none.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return HeldGpu(name, fd)
