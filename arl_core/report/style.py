"""How figures look, and how they leave: one SVG for the page, one PNG beside it."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from arl_core.records import one_line
from frozen_env.contract import Status

INK, MUTED, FAINT, LINE = "#1f2933", "#697586", "#c3cad3", "#e4e8ee"
GREEN, BLUE, AMBER, RED, VIOLET = "#15803d", "#1d4ed8", "#d97706", "#b91c1c", "#7c3aed"
COLOURS = {
    Status.KEPT: GREEN,
    Status.DISCARDED: "#8b98a9",
    Status.STOPPED_EARLY: AMBER,
    Status.CRASHED: RED,
    Status.TIMED_OUT: "#7f1d1d",
    Status.REJECTED: VIOLET,
    Status.DUPLICATE: "#c4b5fd",
}
WORDS = {
    Status.KEPT: "kept",
    Status.DISCARDED: "discarded",
    Status.STOPPED_EARLY: "stopped early",
    Status.CRASHED: "crashed",
    Status.TIMED_OUT: "timed out",
    Status.REJECTED: "rejected",
    Status.DUPLICATE: "duplicate",
}
PNG_DPI = 144
LABEL_CHARS = 38

_RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # labels hold candidates' words: a dollar sign is a dollar sign
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",  # the page needs no font
    "svg.hashsalt": "autoresearch-rl",  # the same campaign gives the same bytes
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style, whatever the user's matplotlibrc says; leaves global state as it was."""
    with rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a candidate's script may have no glyph here
        warnings.filterwarnings("ignore", message=".*constrained_layout not applied.*")
        yield


def new_figure(height_in: float, width_in: float = 9.6) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, png_path: Path) -> bytes:
    """Write the PNG and return the figure as SVG."""
    figure.savefig(png_path, dpi=PNG_DPI)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=PNG_DPI, metadata={"Date": None})
    return buffer.getvalue()


def label(text: str, limit: int = LABEL_CHARS) -> str:
    """A candidate's words as one short printable line."""
    return one_line(text, limit)


def whole_numbers(axes: Axes) -> None:
    """Experiments are counted: no ticks between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
