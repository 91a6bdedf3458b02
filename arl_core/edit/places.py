"""Where a run of lines stands in a text."""

from __future__ import annotations

from collections.abc import Sequence


def split_lines(text: str) -> list[str]:
    """Split at newlines alone. A text that ends in one yields a last empty piece, so that join() restores the text."""
    return text.split("\n")


def find_run(lines: Sequence[str], wanted: Sequence[str]) -> tuple[list[int], bool]:
    """Return every index at which `wanted` stands in `lines`, and whether trailing whitespace had to be forgiven.

    Exact matches win; only where there is none do lines count as equal up to their trailing whitespace. A last empty
    piece is the end of the text, no line, and never matches.
    """
    lines = lines[:-1] if lines and not lines[-1] else lines
    exact = _find(lines, wanted)
    if exact:
        return exact, False
    return _find([line.rstrip() for line in lines], [line.rstrip() for line in wanted]), True


def _find(lines: Sequence[str], wanted: Sequence[str]) -> list[int]:
    size, first = len(wanted), wanted[0]
    last = len(lines) - size
    return [i for i in range(last + 1) if lines[i] == first and list(lines[i : i + size]) == list(wanted)]
