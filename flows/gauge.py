"""Small drawings in text for the live panel: a loss curve in one line, a forecast's interval against the incumbent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

SPARK = "▁▂▃▄▅▆▇█"
WIDTH = 48


def sparkline(losses: Sequence[float], width: int = WIDTH) -> str:
    """Draw a loss curve in one line of block characters, averaged into at most `width` cells. '' of nothing finite."""
    known = [loss for loss in losses if math.isfinite(loss)]
    if not known:
        return ""
    width = min(width, len(known))
    edges = [len(known) * i // width for i in range(width + 1)]
    cells = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(cells), max(cells)
    span = (high - low) or 1.0
    return "".join(SPARK[round((cell - low) / span * (len(SPARK) - 1))] for cell in cells)


def gauge(low: float, middle: float, high: float, incumbent: float | None, width: int = WIDTH) -> str:
    """Draw an interval ▒▒●▒▒ on a line, and the incumbent as ┃ on the same scale. '' for what is not finite."""
    marks = [low, middle, high, *([incumbent] if incumbent is not None else [])]
    if not all(math.isfinite(mark) for mark in marks):
        return ""
    left, right = min(marks), max(marks)
    span = (right - left) or 1.0

    def at(value: float) -> int:
        return round((value - left) / span * (width - 1))

    cells = ["─"] * width
    cells[at(low) : at(high) + 1] = "▒" * (at(high) - at(low) + 1)
    cells[at(middle)] = "●"
    if incumbent is not None:
        cells[at(incumbent)] = "┃"
    return "".join(cells)


def clock(seconds: float) -> str:
    """42 s, 12 min, 7.5 h."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
