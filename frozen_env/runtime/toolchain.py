"""What compiling inside the sandbox takes on a GPU: the C compiler that Triton calls for its launchers, headers, libcuda.

Only candidates on a GPU may read and run these: they are the system's, hold no secrets, and run confined like the
candidate itself. This follows from Triton's sources (`triton/runtime/build.py`, `triton/backends/nvidia/driver.py`) and
was tried with gcc on a machine without a GPU.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

SEARCH_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"  # as a candidate's PATH, and where ldconfig lies
PROGRAMS = ("gcc", "g++", "as", "ld", "ldconfig", "ldconfig.real", "sh")  # g++: inductor, for what stays on the CPU
GCC_PARTS = "/usr/libexec/gcc"  # cc1, collect2 and the linker's plugin; with older systems in /usr/lib/gcc
HEADERS = ("/usr/include", "/usr/local/include")
# Inductor compiles in the candidate's own process: helpers would need semaphores, files in /dev/shm, out of its reach, and a
# precompiled header openssl. Read when torch is imported, so the warm interpreter needs them too.
IN_PROCESS = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
LIBCUDA = "libcuda.so.1"
LIBCUDA_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/cuda/compat",
)


def readable_paths(device: str) -> list[str]:
    """Programs (by their real names) and headers, those that exist; [] unless the device is a GPU."""
    if device != "cuda":
        return []
    programs = [os.path.realpath(path) for path in names(device)]
    wanted = [*programs, GCC_PARTS, sysconfig.get_path("include"), *HEADERS]
    return [path for path in dict.fromkeys(wanted) if os.path.exists(path)]


def names(device: str) -> list[str]:
    """The programs by the names that they are called by, most of them links to the files above; [] unless the device is a GPU."""
    found = [shutil.which(name, path=SEARCH_PATH) for name in PROGRAMS] if device == "cuda" else []
    return [*dict.fromkeys(path for path in found if path), *(["/bin/sh"] if found else [])]


def environment(device: str, folders: tuple[str, ...] = LIBCUDA_FOLDERS) -> dict[str, str]:
    """Variables that spare Triton a search: where libcuda lies. {} unless the device is a GPU."""
    if device != "cuda":
        return {}
    found = [folder for folder in folders if (Path(folder) / LIBCUDA).exists()]
    return {"TRITON_LIBCUDA_PATH": found[0]} if found else {}
