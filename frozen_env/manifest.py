"""Checksums of every frozen file: of this package, and of each problem's folder. A run refuses to start without.

MANIFEST.sha256 has the format of sha256sum, with paths relative to its folder: `sha256sum -c MANIFEST.sha256` works too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from frozen_env.contract import ManifestError
from frozen_env.description import Description
from frozen_env.fetch import sha256_file

ROOT = Path(__file__).resolve().parent
MANIFEST = "MANIFEST.sha256"
SUFFIXES = (".py", ".toml")


def frozen_files(root: Path = ROOT) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def render(root: Path = ROOT, files: Sequence[Path] | None = None) -> str:
    """Return the manifest of these files, by default of everything frozen below root."""
    chosen = frozen_files(root) if files is None else files
    return "".join(f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n" for path in chosen)


def write(root: Path = ROOT, files: Sequence[Path] | None = None) -> None:
    """Pin the files as they are now: for maintainers, after a deliberate change of the frozen environment."""
    (root / MANIFEST).write_text(render(root, files), encoding="utf-8")


def verify(root: Path = ROOT, files: Sequence[Path] | None = None) -> str:
    """Return the manifest's digest. Raises ManifestError naming the first file that is missing, new or changed."""
    path = root / MANIFEST
    pin = "python -m frozen_env manifest --write" + ("" if files is None else f" --problem {root}")
    if not path.is_file():
        remedy = "restore it from version control, a run without it proves nothing"
        raise ManifestError(f"{path} is missing; {remedy if files is None else f'pin the frozen files with `{pin}`'}")
    pinned, found = _parse(path.read_text(encoding="utf-8")), _parse(render(root, files))
    for name in sorted(pinned.keys() | found.keys()):
        if pinned.get(name) != found.get(name):
            how = (
                "is missing" if name not in found else "is not in the manifest" if name not in pinned else "has changed"
            )
            raise ManifestError(
                f"{root.name}/{name} {how}. Restore it from version control; if you changed the frozen environment on purpose, "
                f"pin it with `{pin}` (results before and after are not comparable)."
            )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin_problem(problem: Description) -> None:
    """Pin everything in a problem's folder but its editable files and notes."""
    write(problem.folder, problem.frozen_files())


def verify_problem(problem: Description) -> str:
    """Return the digest of a problem folder's manifest. Raises ManifestError as verify() does."""
    return verify(problem.folder, problem.frozen_files())


def _parse(text: str) -> dict[str, str]:
    """Checksums by file name."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
