"""What a candidate keeps on disk: how much, and how to remove it, however hostile the folder's shape."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_DEPTH = 32  # folders within folders; deeper ones are refused, so that no path grows beyond what the kernel takes
BLOCK_BYTES = 512  # the unit of st_blocks


def usage(folder: Path, max_entries: int) -> tuple[int, int, int, int]:
    """Return bytes on disk, entries, depth, and how many folders in it hide what they hold from us (nobody's but root's).

    Counting ends at max_entries or MAX_DEPTH: that is too much. A folder's permissions are left as they are: by the time that
    they were changed it could be a link to a folder of ours.
    """
    total_bytes, entries, deepest, closed = 0, 0, 0, 0
    waiting: list[tuple[str, int]] = [(str(folder), 1)]
    while waiting:
        path, depth = waiting.pop()
        deepest = max(deepest, depth)
        try:
            for entry in _entries(path):
                entries += 1
                if entries > max_entries:
                    return total_bytes, entries, deepest, closed
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    total_bytes += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False) and depth <= MAX_DEPTH:
                        waiting.append((entry.path, depth + 1))
        except PermissionError:
            closed += 1
        except OSError:  # gone meanwhile, or not there
            continue
    return total_bytes, entries, deepest, closed


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as found:
        yield from found


def deleted_bytes(pids: Iterable[int]) -> int:
    """Bytes of files that have no name any more but are held open or mapped: deleting a file must not hide it."""
    held: dict[tuple[int, int], int] = {}  # by device and inode
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    info = os.stat(f"/proc/{pid}/fd/{number}")
                    if stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
                        held[info.st_dev, info.st_ino] = info.st_blocks * BLOCK_BYTES
        for key, size_bytes in _mapped(pid).items():
            held.setdefault(key, size_bytes)
    # Shared mappings without a file are files of the kernel's own; they count as memory.
    return sum(size_bytes for (device, _), size_bytes in held.items() if device != _memory_device())


def _mapped(pid: int) -> dict[tuple[int, int], int]:
    """Sizes of the mappings of deleted files, by device and inode."""
    found: dict[tuple[int, int], int] = {}
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    for line in lines:
        if not line.endswith(" (deleted)"):
            continue
        addresses, _, _, device, inode, *_ = line.split()
        first, last = (int(part, 16) for part in addresses.split("-"))
        major, minor = (int(part, 16) for part in device.split(":"))
        key = (os.makedev(major, minor), int(inode))
        found[key] = found.get(key, 0) + last - first
    return found


@functools.cache
def _memory_device() -> int:
    fd = os.memfd_create("probe")
    device = os.fstat(fd).st_dev
    os.close(fd)
    return device


def remove(folder: Path) -> None:
    """Remove a folder whatever a candidate made of it: names of any kind, folders without permissions, any depth.

    Each folder inside is moved to the top, under a name that is nobody's, when what lies beside it has gone: neither paths nor
    the stack grow, and on a full disk nothing is made before something was freed. Nothing happens when there is no such folder.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    top, prefix, moved = str(folder), f".removing-{secrets.token_hex(8)}-", 0
    waiting = [top]
    while waiting:
        inside = waiting.pop()
        os.chmod(inside, 0o700)
        folders = []
        for entry in list(_entries(inside)):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
        if inside == top:
            waiting += folders
            continue
        for path in folders:
            os.chmod(path, 0o700)
            moved += 1
            target = os.path.join(top, f"{prefix}{moved}")
            os.rename(path, target)
            waiting.append(target)
        os.rmdir(inside)
    os.rmdir(top)
