"""Checksums of every frozen file. A run verifies them before it starts and refuses to run without.

MANIFEST.sha256 has the format of sha256sum, with paths relative to frozen_env/: `sha256sum -c MANIFEST.sha256` works too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from frozen_env.contract import ManifestError
from frozen_env.fetch import sha256_file

ROOT = Path(__file__).resolve().parent
MANIFEST = "MANIFEST.sha256"
SUFFIXES = (".py", ".toml")


def frozen_files(root: Path = ROOT) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def render(root: Path = ROOT) -> str:
    return "".join(f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n" for path in frozen_files(root))


def write(root: Path = ROOT) -> None:
    """Pin the files as they are now: for maintainers, after a deliberate change of the frozen environment."""
    (root / MANIFEST).write_text(render(root), encoding="utf-8")


def verify(root: Path = ROOT) -> str:
    """Return the manifest's digest. Raises ManifestError naming the first file that is missing, new or changed."""
    path = root / MANIFEST
    if not path.is_file():
        raise ManifestError(f"{path} is missing; restore it from version control, a run without it proves nothing")
    pinned, found = _parse(path.read_text(encoding="utf-8")), _parse(render(root))
    for name in sorted(pinned.keys() | found.keys()):
        if pinned.get(name) != found.get(name):
            how = (
                "is missing" if name not in found else "is not in the manifest" if name not in pinned else "has changed"
            )
            raise ManifestError(
                f"frozen_env/{name} {how}. Restore it from version control; if you changed the frozen environment on purpose, "
                "pin it with `python -m frozen_env manifest --write` (results before and after are not comparable)."
            )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parse(text: str) -> dict[str, str]:
    """Checksums by file name."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
