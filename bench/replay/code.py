"""Which code made a result: a digest of the files that decide it. Results of different code are not compared without a word."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from arl_core.records import source_hash

ROOT = Path(__file__).resolve().parents[2]
NO_CODE = ("__pycache__", "DATA_CARD.md", "arms.py", "code.py", "figure.py", "__main__.py")


def code_digest(names: Sequence[str], root: Path = ROOT, also: str = "") -> str:
    """Return twelve hex digits of the bytes of files and of all files in folders, and of `also`.

    Comments and docstrings of Python files are no code; libraries are not in it. In folders NO_CODE is left out.
    """
    digest = hashlib.sha256(also.encode())
    for name in names:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            left_out = place.is_dir() and set(path.relative_to(root).parts) & set(NO_CODE)
            if path.is_file() and not left_out:
                said = source_hash(path.read_text("utf-8")).encode() if path.suffix == ".py" else path.read_bytes()
                digest.update(path.relative_to(root).as_posix().encode() + said)
    return digest.hexdigest()[:12]
