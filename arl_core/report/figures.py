"""Figures of the search itself: the staircase, the lineage, the statuses, the levers, where the time went.

Each function returns a figure, or None when the campaign has nothing to draw yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arl_core.records import Experiment
from arl_core.report import findings
from arl_core.report.findings import LeverEffect
from arl_core.report.style import (
    AMBER,
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    INK,
    MUTED,
    RED,
    WORDS,
    label,
    new_figure,
    whole_numbers,
)
from frozen_env.contract import Status

FAILED = (Status.CRASHED, Status.TIMED_OUT, Status.REJECTED, Status.DUPLICATE)
MOST_LABELS = 10
MOST_LEVERS = 16
RASTER_FROM = 400  # marks: more of them are drawn as pixels, or the page grows by megabytes
BLOCKS = 20  # bars of the status figure


def best_so_far(experiments: Sequence[Experiment]) -> Figure | None:
    """Every experiment at its value, the staircase of the best so far, the largest steps labelled."""
    steps = findings.staircase(experiments)
    if not steps:
        return None
    higher = experiments[0].direction == "higher"
    figure = new_figure(4.4)
    axes = figure.subplots()
    low, high = _window(experiments, higher)
    size = 34 if len(experiments) <= 60 else 18 if len(experiments) <= 300 else 8
    raster = len(experiments) > RASTER_FROM
    for status in (Status.STOPPED_EARLY, Status.DISCARDED, Status.KEPT):
        some = [one for one in experiments if one.status is status]
        points = [(one.index, value) for one in some if (value := _height(one)) is not None]
        if not points:
            continue
        x, y = np.array(points, dtype=float).T
        face = "white" if status is Status.STOPPED_EARLY else COLOURS[status]
        words = f"{WORDS[status]}{' (forecast)' if status is Status.STOPPED_EARLY else ''}: {len(some)}"
        order = 5 if status is Status.KEPT else 3
        axes.scatter(
            x, y.clip(low, high), size, face, edgecolors=COLOURS[status], label=words, zorder=order, rasterized=raster
        )
        out = (y > high) | (y < low)
        axes.scatter(x[out], y[out].clip(low, high), size, COLOURS[status], marker="v" if higher else "^", zorder=4)
    failed = [one for one in experiments if one.status in FAILED]
    edge = high if not higher else low
    if failed:
        x = [one.index for one in failed]
        colours = [COLOURS[one.status] for one in failed]
        axes.scatter(x, [edge] * len(x), size, colours, marker="|", label=f"no value: {len(failed)}", rasterized=raster)
    x, y = np.array([*steps, (experiments[-1].index, steps[-1][1])], dtype=float).T
    axes.step(x, y, where="post", color=GREEN, zorder=4, label="best so far")
    axes.set_xlabel("experiment")
    axes.set_ylabel(f"{label(experiments[0].metric) or 'value'} ({'higher' if higher else 'lower'} is better)")
    axes.margins(x=0.03)
    pad = 0.06 * (high - low)
    floor = 0.16 * (high - low)  # the labels stand there
    axes.set_ylim((low - pad, high + floor) if higher else (low - floor, high + pad))
    whole_numbers(axes)
    axes.legend(ncols=5, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handletextpad=0.3)
    _label_steps(figure, axes, experiments, higher)
    return figure


def closing_plot(experiments: Sequence[Experiment]) -> Figure:
    """Every first run or forecast, the means over fresh seeds, and the staircase of the best so far; empty axes without any."""
    figure = new_figure(4.5, 8)
    axes = figure.subplots()
    measured = [(one.index, one.value) for one in experiments if one.value is not None]
    forecast = [(one.index, one.estimate) for one in experiments if one.value is None and one.estimate is not None]
    steps = findings.staircase(experiments)  # side by side, the last one kept need not be the incumbent
    again = [(one.index, one.confirmed_value, one.confirmed_error or 0.0) for one in experiments if one.repeated]
    if measured:
        axes.plot(*zip(*measured, strict=True), "o", color="tab:blue", label="one run")
    if again:
        x, mean, error = np.array(again, dtype=float).T
        axes.errorbar(
            x,
            mean,
            yerr=error,
            fmt="s",
            color="tab:green",
            capsize=3,
            label="mean over fresh seeds ± standard error",
        )
    if forecast:
        axes.plot(*zip(*forecast, strict=True), "o", mfc="none", color="tab:orange", label="stopped early (forecast)")
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color="tab:green", label="best so far")
    axes.set_xlabel("experiment")
    axes.set_ylabel(experiments[0].metric if experiments else "")
    axes.set_title(f"{experiments[0].campaign_id}: first runs on seed {experiments[0].seed}" if experiments else "")
    if measured or forecast:
        axes.legend()
    return figure


def _height(one: Experiment) -> float | None:
    value = one.figure
    return value if value is not None else one.estimate


def _window(experiments: Sequence[Experiment], higher: bool) -> tuple[float, float]:
    """Limits of the value axis: the staircase, every value that looked better than it, and of the worse ones what is not
    far off; the others go to the edge."""
    steps = [value for _, value in findings.staircase(experiments)]
    values = [v for one in experiments if (v := _height(one)) is not None and np.isfinite(v)]
    span = (max(steps) - min(steps)) or abs(steps[0]) * 0.02 or 1.0
    best, start = (max(steps), min(steps)) if higher else (min(steps), max(steps))
    if higher:
        low = max(min(values), start - 1.5 * span)
        return min(low, float(np.quantile(values, 0.5))), max(best, *values)
    high = min(max(values), start + 1.5 * span)
    return min(best, *values), max(high, float(np.quantile(values, 0.5)), best + 0.2 * span)


def _label_steps(figure: Figure, axes: Axes, experiments: Sequence[Experiment], higher: bool) -> None:
    """Name the largest steps where nothing can stand: on the better side of the staircase, before the step."""
    steps = sorted(findings.improvements(experiments), key=lambda step: -step.gain)[:MOST_LABELS]
    figure.draw_without_rendering()
    bounds = axes.get_window_extent()
    placed: list[Any] = []
    kept = [step.experiment.index for step in findings.improvements(experiments)]
    for step in sorted(steps, key=lambda step: step.experiment.index):
        after = next((index for index in kept if index > step.experiment.index), experiments[-1].index + 1)
        stair_end = axes.transData.transform((after, step.after))[
            0
        ]  # to the right, the label would cross the next step
        seen = f"confirmed ×{step.experiment.confirmations}" if step.confirmed else "single run"
        words = f"#{step.experiment.index} {label(step.experiment.summary)}  {_signed(-step.gain, higher)}, {seen}"
        for text, dx, side in ((words, -5, "right"), (words, 5, "left"), (f"#{step.experiment.index}", -4, "right")):
            note = axes.annotate(
                text,
                (step.experiment.index, step.after),
                xytext=(dx, 6 if higher else -6),
                textcoords="offset points",
                ha=side,
                va="bottom" if higher else "top",
                fontsize=7.8,
                color=INK,
                zorder=6,
            )
            box = note.get_window_extent()
            room = stair_end if side == "left" else bounds.x1
            inside = bounds.x0 <= box.x0 and box.x1 <= room and bounds.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            note.remove()


def _signed(change: float, higher: bool) -> str:
    return f"{-change if higher else change:+.4f}".replace("-", "−")


def lineage(experiments: Sequence[Experiment]) -> Figure | None:
    """Each experiment by its number of edits from the seed; lines join parent and child; the way to the best is bold."""
    way = findings.lineage(experiments)
    if not way:
        return None
    depth = findings.depths(experiments)
    deepest = max(depth.values())
    figure = new_figure(min(4.6, 1.4 + 0.28 * (deepest + 1)))
    axes = figure.subplots()
    raster = len(experiments) > RASTER_FROM
    for one in experiments:
        if one.parent_index is None:
            continue
        ends = (one.parent_index, one.index), (depth.get(one.parent_index, 0), depth[one.index])
        axes.plot(*ends, color=FAINT, linewidth=0.7, zorder=1, rasterized=raster)
    trunk = [generation.experiment.index for generation in way]
    axes.plot(trunk, [depth[index] for index in trunk], color=GREEN, linewidth=2.4, zorder=2)
    size = 30 if len(experiments) <= 60 else 14 if len(experiments) <= 300 else 6
    for status, colour in COLOURS.items():
        some = [one for one in experiments if one.status is status]
        if some:
            x, y = [one.index for one in some], [depth[one.index] for one in some]
            axes.scatter(x, y, size, colour, label=WORDS[status], zorder=3, linewidths=0, rasterized=raster)
    axes.set_xlabel("experiment")
    axes.set_ylabel("edits from the seed")
    axes.set_ylim(deepest + 0.6, -0.6)
    axes.set_yticks(range(0, deepest + 1, max(1, deepest // 10)))
    axes.margins(x=0.03)
    whole_numbers(axes)
    axes.legend(ncols=7, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handletextpad=0.2)
    return figure


def statuses(experiments: Sequence[Experiment]) -> Figure | None:
    """How experiments ended, in blocks along the campaign."""
    if len(experiments) < 2:
        return None
    block = -(-len(experiments) // BLOCKS)  # of equal size, the last perhaps shorter
    edges = np.array([*range(0, len(experiments), block), len(experiments)])
    figure = new_figure(2.6)
    axes = figure.subplots()
    starts = edges[:-1]
    below = np.zeros(len(starts))
    for status, colour in COLOURS.items():
        counts = np.array(
            [sum(one.status is status for one in experiments[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
        )
        if not counts.any():
            continue
        total = sum(one.status is status for one in experiments)
        widths = np.diff(edges) * 0.92
        axes.bar(starts, counts, widths, below, align="edge", color=colour, label=f"{WORDS[status]} {total}")
        below += counts
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_xlabel("experiment")
    axes.grid(visible=False, axis="x")
    whole_numbers(axes)
    axes.legend(ncols=7, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handletextpad=0.3)
    return figure


def levers(effects: Sequence[LeverEffect], metric: str) -> Figure | None:
    """Mean gain of the edits that touched each lever, with its standard error; right of 0 is better."""
    shown = [effect for effect in effects if effect.mean_gain is not None][:MOST_LEVERS]
    if not shown:
        return None
    shown.sort(key=lambda effect: effect.mean_gain or 0.0)
    figure = new_figure(0.9 + 0.27 * len(shown))
    axes = figure.subplots()
    rows = np.arange(len(shown))
    means = np.array([effect.mean_gain or 0.0 for effect in shown])
    errors = np.array([effect.standard_error or 0.0 for effect in shown])
    colours = [GREEN if mean > 0 else RED for mean in means]
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.hlines(rows, means - errors, means + errors, color=colours, linewidth=2, alpha=0.5)
    axes.scatter(means, rows, 34, colours, zorder=3)
    names = [
        f"{label(effect.name, 34)}   {effect.ran} ran of {effect.tried}, {effect.improved} kept" for effect in shown
    ]
    axes.set_yticks(rows, names)
    axes.set_xlabel(f"mean gain in {metric} over the incumbent (right is better; bars: ± standard error)")
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.06)
    return figure


def time_parts(parts: dict[str, float]) -> Figure | None:
    """Time by part, as one bar; that of candidates side by side adds up."""
    whole_s = sum(parts.values())
    if whole_s <= 0:
        return None
    colours = {"training": GREEN, "scoring": BLUE, "start-up": "#93c5fd", "policy": AMBER, "confirming": "#4ade80"}
    figure = new_figure(1.35)
    axes = figure.subplots()
    left = 0.0
    for part, seconds in parts.items():
        share = seconds / whole_s
        axes.barh(
            0, share, left=left, color=colours.get(part, FAINT), label=f"{part} {share:.1%} ({duration(seconds)})"
        )
        left += share
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.legend(ncols=6, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2, handlelength=1)
    return figure


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 12 min, 7.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
