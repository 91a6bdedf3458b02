"""Confinement of a forked child: Landlock through sandlock, and resource limits. No root is needed.

The child is forked from an interpreter that has imported torch already and confines itself before it runs a line of the
candidate's code; a script that imports torch under a seccomp supervisor starts seconds later (docs/log.md).
"""

from __future__ import annotations

import os
import resource
import site
import sys
from collections.abc import Sequence
from pathlib import Path

from frozen_env.contract import SandboxUnavailable

# What a Python with torch reads outside its own prefix: the loader's libraries and facts about the machine.
SYSTEM_READABLE = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/urandom",
    "/dev/zero",
)
GPU_READABLE = (
    "/proc/driver/nvidia",
    "/sys/bus/pci/devices",
    "/sys/devices/pci0000:00",
    "/usr/local/cuda",
    "/usr/local/nvidia",
)
OPEN_FILES = 1024


def describe(mode: str) -> str:
    """Return the words that go on every result, e.g. 'landlock-abi7'. Raises SandboxUnavailable when mode is 'on' and
    the kernel cannot confine."""
    if mode == "off":
        return "OFF"
    import sandlock

    abi, needed = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    if abi < needed:
        raise SandboxUnavailable(
            f"this kernel offers Landlock ABI {abi}, confinement needs {needed} (Linux 6.12 or newer). Use a newer kernel, or, if "
            "you trust every candidate, --set environment.sandbox=off (it is written on every result)."
        )
    return f"landlock-abi{abi}"


def readable_paths() -> list[str]:
    """Interpreter, standard library and site-packages: never the repository, the data folder or a home."""
    wanted = [
        sys.prefix + "/lib",
        sys.base_prefix + "/lib",
        sys.prefix + "/pyvenv.cfg",
        os.path.realpath(sys.executable),
        *site.getsitepackages(),
        *SYSTEM_READABLE,
    ]
    return list(dict.fromkeys(path for path in wanted if os.path.exists(path)))


def gpu_paths() -> list[str]:
    """Device files of NVIDIA GPUs, when there are any."""
    devices = [str(path) for path in Path("/dev").glob("nvidia*")]
    return [path for path in (*devices, *GPU_READABLE) if os.path.exists(path)] if devices else []


def confine(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine the calling process for good: only these paths, no signals and no abstract sockets to the outside."""
    import sandlock

    sandlock.confine(
        sandlock.Sandbox(fs_readable=[*readable_paths(), *readable], fs_writable=["/dev/null", *gpu_paths(), *writable])
    )


def limit_resources(*, file_limit_mb: int) -> None:
    """Bound open files and the size of any one file; no core dumps."""
    file_bytes = file_limit_mb * 2**20
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(kind, (value, value))
