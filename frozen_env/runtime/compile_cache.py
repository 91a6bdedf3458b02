"""Compiled kernels that outlive a candidate: made by a trusted program alone, handed to each candidate as a copy.

Compiled code is found by the digest of its source, so a hostile candidate that could write where others read could plant
a kernel under the digest of honest source. Therefore:

- Nothing that an edited program compiled is ever kept. Only a run of the repository's own target/train.py, with other
  values for its constants but not a line changed otherwise, adds to the cache (`is_trusted`). It runs alone in an empty
  scratch folder of its own, so no other code has written there.
- Every candidate gets a copy in its scratch folder, never a link: what it writes there ends with it.
- The cache lies in the data folder, which no candidate can read or write.

An edit that leaves a compiled function as it was finds its kernels; one that changes it compiles that anew.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from frozen_env.files import split_marked
from frozen_env.runtime import disk

FOLDERS = ("inductor", "triton")  # of a scratch folder; inside.clean_environment names them
MAX_BYTES = 1 << 30
MAX_ENTRIES = 5_000  # files and folders; a candidate may have four times as many (limits.py)
SCRATCH_SHARE = 1 / 4  # of what a candidate may write, at most, is given to it


class CompileCache:
    """One cache folder. `trusted_source` is the program whose compiled code is kept, or None: nothing is."""

    def __init__(self, folder: Path, trusted_source: str | None) -> None:
        self.folder = folder
        self._trusted = fingerprint(trusted_source) if trusted_source is not None else ""

    def is_trusted(self, source: str) -> bool:
        """Say whether `source` is the trusted program, whatever the values of its constants."""
        return self._trusted != "" and fingerprint(source) == self._trusted

    def give(self, scratch: Path, scratch_limit_mb: int) -> None:
        """Copy what there is into a candidate's scratch folder. A cache that cannot be read, or is too large, is none."""
        if disk.usage(self.folder, MAX_ENTRIES)[0] > SCRATCH_SHARE * scratch_limit_mb * 2**20:
            return
        for name in FOLDERS:
            if (self.folder / name).is_dir():
                with contextlib.suppress(OSError, shutil.Error):
                    shutil.copytree(self.folder / name, scratch / name, symlinks=True)

    def take(self, scratch: Path) -> None:
        """Keep the regular files that a trusted run has compiled. What is there already stays; one too large is emptied."""
        if self._too_large():
            disk.remove(self.folder)
        for name in FOLDERS:
            for path in sorted((scratch / name).rglob("*")):
                if path.is_file() and not path.is_symlink():
                    _keep(path, self.folder / path.relative_to(scratch))

    def _too_large(self) -> bool:
        used_bytes, entries, *_ = disk.usage(self.folder, MAX_ENTRIES)
        return used_bytes > MAX_BYTES or entries > MAX_ENTRIES


def _keep(path: Path, target: Path) -> None:
    """Copy one file whole or not at all: other hosts of this machine may do the same now."""
    if target.exists():
        return
    with contextlib.suppress(OSError):  # a full disk costs a later compilation, no result
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{os.getpid()}-{target.name}")
        shutil.copy2(path, part)
        os.replace(part, target)


def fingerprint(source: str) -> str:
    """Return a digest of a program without the values of its UPPERCASE constants; '' when it does not parse.

    A value counts as one only when it is a literal: no call, no name, nothing that runs. Each file of a program counts by
    itself, with its name: what stands in which is part of the program.
    """
    trees = {name: _tree(text) for name, text in (split_marked(source) or {"": source}).items()}
    if not all(trees.values()):
        return ""
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()


def _tree(text: str) -> str:
    """Return a file's syntax tree without the values of constants; '' when it does not parse.

    Bytes are parsed, as they are run: a coding cookie in a comment could otherwise make code of what looks like a comment.
    """
    try:
        tree = ast.parse(text.encode("utf-8", errors="replace"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_constant(node):
            node.value = ast.Constant(value=None)
    return ast.dump(tree)


def _is_constant(node: ast.Assign) -> bool:
    (target, *others) = node.targets
    if others or not isinstance(target, ast.Name) or not target.id.isupper():
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
