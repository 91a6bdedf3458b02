"""Confinement of a forked child, for good, before it runs a line of the candidate's code. No root is needed.

Files and signals by Landlock (through sandlock), system calls by seccomp.py, memory, files and priority by resource limits,
and no capabilities, should the host run as root. Where the kernel has no Landlock of that age, bubblewrap.py takes its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import site
import sys
from collections.abc import Sequence
from pathlib import Path

from frozen_env.contract import SandboxUnavailable
from frozen_env.runtime import bubblewrap, seccomp
from frozen_env.spec import EnvironmentSpec

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
OPEN_FILES = 1024
THREAD_STACKS_MB = 256  # of address space, for threads that torch starts itself
ARENAS_MB = 1024  # address space that malloc reserves without using it
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def describe(mode: str) -> str:
    """Return the words that go on every result: 'landlock-abi7+seccomp', 'bubblewrap+seccomp' or 'OFF'.

    Raises SandboxUnavailable when mode is 'on' and this machine cannot confine.
    """
    if mode == "off":
        return "OFF"
    seccomp.deny_program()
    abi, needed = _landlock()
    if abi >= needed:
        return f"landlock-abi{abi}+seccomp"
    if bubblewrap.works():
        return "bubblewrap+seccomp"
    raise SandboxUnavailable(
        f"this kernel offers Landlock ABI {abi}, confinement needs {needed} (Linux 6.12 or newer), and bubblewrap does not work "
        "here either. Use a newer kernel, or install bubblewrap (the program bwrap) and allow user namespaces, or, if you trust "
        "every candidate, --set environment.sandbox=off (it is written on every result)."
    )


def _landlock() -> tuple[int, int]:
    import sandlock

    return sandlock.landlock_abi_version(), sandlock.min_landlock_abi()


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


def confine_files(*, readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine this process: only these paths, no signals and no abstract sockets to the outside (Landlock)."""
    import sandlock

    sandlock.confine(sandlock.Sandbox(fs_readable=[*readable_paths(), *readable], fs_writable=["/dev/null", *writable]))


def drop_capabilities() -> None:
    """Give up what root may do beyond others; changes nothing for anybody else."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if _libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def limit_resources(spec: EnvironmentSpec) -> None:
    """Bound one process's files, memory and priority, so that it fails by itself before the supervisor has to look.

    Memory is bounded on CPU only: CUDA reserves address space without measure. The supervisor's own limit holds for both.
    """
    file_bytes = max(spec.scratch_limit_mb, spec.submission_limit_mb) * 2**20
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    if spec.device == "cpu":
        data_mb, address_mb = _own_memory_mb()
        limits[resource.RLIMIT_DATA] = int((data_mb + spec.memory_limit_mb + THREAD_STACKS_MB) * 2**20)
        limits[resource.RLIMIT_AS] = int((address_mb + spec.memory_limit_mb + THREAD_STACKS_MB + ARENAS_MB) * 2**20)
    for kind, value in limits.items():
        soft_hard = min(value, resource.getrlimit(kind)[1]) if resource.getrlimit(kind)[1] >= 0 else value
        resource.setrlimit(kind, (soft_hard, soft_hard))
    with contextlib.suppress(OSError):  # when the machine itself runs out of memory, the candidate goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _own_memory_mb() -> tuple[float, float]:
    """What a fork of the warm interpreter starts with: writable private memory, and address space."""
    found = {"VmData:": 0, "VmSize:": 0}
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, rest = line.partition("\t")
        if name in found:
            found[name] = int(rest.split()[0])
    return found["VmData:"] / 1024, found["VmSize:"] / 1024
