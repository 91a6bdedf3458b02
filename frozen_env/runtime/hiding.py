"""Hide parts of the installed packages from a candidate: a data set that a package carries holds the held-out answers too.

Landlock only ever allows, so hiding means to allow everything beside: a second ruleset, which restricts the reading of
files alone, with a rule for each neighbour of what is hidden, on every level from the root down (man 7 landlock).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from frozen_env.contract import SandboxUnavailable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
PATH_BENEATH = 1
READ_FILE = 1 << 2
PACKAGES = ("", "site-packages", "dist-packages", "python*/site-packages", "python*/dist-packages")

_libc = ctypes.CDLL(None, use_errno=True)


def places(hidden: Iterable[str], readable: Sequence[str]) -> list[Path]:
    """Return the real paths of what is hidden: each a path inside some package folder of `readable`, or absolute."""
    return sorted({found.resolve() for _, _, found in _found(hidden, readable)})


def aliases(hidden: Iterable[str], readable: Sequence[str]) -> list[str]:
    """Return every path below `readable` under which something hidden is seen."""
    return sorted({str(found) for _, _, found in _found(hidden, readable)})


def missing(hidden: Iterable[str], readable: Sequence[str]) -> list[str]:
    """Return the names among `hidden` that nothing answers to."""
    there = {name for name, _, _ in _found(hidden, readable)}
    return [name for name in hidden if name not in there]


def _found(hidden: Iterable[str], readable: Sequence[str]) -> list[tuple[str, str, Path]]:
    found = []
    for name in hidden:
        if name.startswith("/"):
            found += [(name, "/", Path(name))] if os.path.exists(name) else []
            continue
        for root in readable:
            for pattern in PACKAGES:
                below = f"{pattern}/{name}" if pattern else name
                found += [(name, root, path) for path in Path(root).glob(below)] if os.path.isdir(root) else []
    return found


def rules_without(hidden: Sequence[Path]) -> int:
    """Return a ruleset under which these real paths cannot be read. Made while folders can still be listed.

    Raises SandboxUnavailable when the kernel refuses.
    """
    ruleset = _call(CREATE_RULESET, ctypes.create_string_buffer(struct.pack("=Q", READ_FILE), 8), 8, 0)
    for path in neighbours(hidden):
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # vanished meanwhile, or not ours to see
        try:
            rule = ctypes.create_string_buffer(struct.pack("=Qi", READ_FILE, fd), 12)
            _call(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
        finally:
            os.close(fd)
    return ruleset


def obey(ruleset: int) -> None:
    """Put a ruleset on this process, for good, and close it. Call where no_new_privs is set already."""
    _call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def neighbours(hidden: Sequence[Path]) -> list[str]:
    """Return what stands beside the hidden paths on every level. Links are left out: their targets stand for themselves."""
    above = {parent for path in hidden for parent in path.parents}
    allowed = []
    for folder in above:
        with os.scandir(folder) as entries:
            allowed += [
                entry.path
                for entry in entries
                if Path(entry.path) not in above and Path(entry.path) not in hidden and not entry.is_symlink()
            ]
    return allowed


def _call(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    found = int(_libc.syscall(ctypes.c_long(number), *words))
    if found < 0:
        code = ctypes.get_errno()
        raise SandboxUnavailable(
            f"run.hidden cannot be kept: Landlock refuses ({os.strerror(code)}); use a newer kernel"
        )
    return found
