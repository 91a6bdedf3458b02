"""Several editable files as one text, so that prompt, decoder, edit and identity work on one thing.

    # --- file: model.py ---
    ...
    # --- file: train.py ---
    ...

One file alone is its own text, without a mark. The marks are comments: the whole still parses as Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_MARK = re.compile(r"^# --- file: (.+) ---$")


def mark(name: str) -> str:
    """Return the line that begins a file in a text of several."""
    return f"# --- file: {name} ---"


def is_marked(text: str) -> bool:
    """Say whether a text holds a line that begins a file."""
    return "# --- file: " in text and any(_MARK.match(line) for line in text.split("\n"))


def join(files: Mapping[str, str]) -> str:
    """Return the files as one text, in their order. Raises ValueError when a file holds a line that looks like a mark."""
    if len(files) == 1:
        return next(iter(files.values()))
    for name, text in files.items():
        if is_marked(text):
            raise ValueError(f"{name} holds a line like {mark('NAME')!r}, which separates files; change that line")
    return "".join(
        f"{mark(name)}\n{text if text.endswith(chr(10)) or not text else text + chr(10)}"
        for name, text in files.items()
    )


def split(text: str, names: Sequence[str]) -> dict[str, str]:
    """Return {name: text} of what join() made of these files. Raises ValueError unless each mark stands once, in order."""
    if len(names) == 1:
        return {names[0]: text}
    found = split_marked(text)
    if found is None or list(found) != list(names):
        raise ValueError(f"the marks of the files {', '.join(names)} must stand, each once and in this order")
    return found


def split_marked(text: str) -> dict[str, str] | None:
    """Return {name: text} by the marks that the text itself holds; None for one file, or when the marks are not whole."""
    lines = text.split("\n")
    if not _MARK.match(lines[0]):
        return None
    files: dict[str, list[str]] = {}
    body: list[str] = []
    for line in lines:
        if found := _MARK.match(line):
            if found[1] in files:
                return None
            body = files[found[1]] = []
        else:
            body.append(line)
    last = list(files)[-1]
    return {name: "\n".join(body) + ("\n" if body and name != last else "") for name, body in files.items()}
