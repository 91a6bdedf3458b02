"""Figures of runs and of learning: curves and their stops, forecasts against what came, savings, PPO, the theory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from arl_core.records import Experiment
from arl_core.report import findings
from arl_core.report.figures import duration
from arl_core.report.findings import LearningPoint
from arl_core.report.style import AMBER, BLUE, FAINT, GREEN, INK, MUTED, RED, label, new_figure, whole_numbers
from arl_core.selfeval.curve import thin
from arl_core.theory import BestSoFar, improvement_rate
from frozen_env.contract import Report, Status, Verdict

MOST_CURVES = 120  # drawn; kept runs first, then the latest
CURVE_POINTS = 160
MOST_TRACKS = 6
CHECK_AT = 0.5  # share of the budget at which forecasts are held against what came

Curves = Mapping[int, Sequence[Report]]
Verdicts = Mapping[int, Sequence[Verdict]]


def curves(experiments: Sequence[Experiment], reports: Curves) -> Figure | None:
    """Training loss over the share of the budget: kept runs in green, the best on top, stops marked."""
    drawable = [one for one in experiments if _finite(reports.get(one.index, ()))]
    if not drawable:
        return None
    kept = [one for one in drawable if one.status is Status.KEPT]
    others = [one for one in drawable if one.status is not Status.KEPT]
    best = findings.best_of(experiments)
    figure = new_figure(3.8)
    axes = figure.subplots()
    finals, starts = [], []
    for one in [*others[-(MOST_CURVES - min(len(kept), MOST_CURVES // 2)) :], *kept[-MOST_CURVES // 2 :]]:
        points = thin(_finite(reports[one.index]), CURVE_POINTS)
        x, y = np.array([(point.fraction, point.loss) for point in points]).T
        y = _smooth(y)
        starts.append(y[0])
        finals.append(y[-1])
        colour, width, order = {
            Status.KEPT: (GREEN, 1.1, 3),
            Status.STOPPED_EARLY: (AMBER, 0.9, 2),
        }.get(one.status, (FAINT, 0.8, 1))
        if best is not None and one.index == best.index:
            colour, width, order = GREEN, 2.6, 5
        axes.plot(x, y, color=colour, linewidth=width, zorder=order, alpha=0.9, rasterized=len(drawable) > 60)
        if one.status is Status.STOPPED_EARLY:
            axes.plot(x[-1:], y[-1:], "x", color=AMBER, markersize=6, markeredgewidth=1.6, zorder=4)
        elif one.status in (Status.CRASHED, Status.TIMED_OUT):
            axes.plot(x[-1:], y[-1:], "x", color=RED, markersize=5, markeredgewidth=1.4, zorder=4)
    for words, colour, width, mark in (
        ("the best", GREEN, 2.6, ""),
        ("kept", GREEN, 1.1, ""),
        ("stopped early, × where", AMBER, 0.9, "x"),
        ("discarded", FAINT, 1.2, ""),
    ):
        axes.plot([], [], color=colour, linewidth=width, marker=mark, label=words)
    axes.set_xlim(0, 1.02)
    low, high = min(finals), max(np.median(finals), min(np.max(finals), np.median(starts)))
    axes.set_ylim(low - 0.06 * (high - low + 0.1), high + 0.6 * (high - low + 0.1))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the training budget")
    axes.set_ylabel("training loss (self-reported)")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
    return figure


def forecasts(experiments: Sequence[Experiment], verdicts: Verdicts) -> Figure | None:
    """Left: forecasts of the end as runs went on, with their intervals. Right: forecasts half-way against what came."""
    told = {index: [v for v in some if v.forecast is not None] for index, some in verdicts.items()}
    runs = [one for one in experiments if told.get(one.index)]
    if not runs:
        return None
    figure = new_figure(3.5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    stopped = [one for one in runs if one.status is Status.STOPPED_EARLY]
    kept = [one for one in runs if one.status is Status.KEPT]
    shown = [*kept[-MOST_TRACKS // 2 :], *stopped[-MOST_TRACKS // 2 :]] or runs[-MOST_TRACKS:]
    ends: dict[tuple[float, float], list[int]] = {}
    for one in shown:
        track = told[one.index]
        colour = AMBER if one.status is Status.STOPPED_EARLY else GREEN if one.status is Status.KEPT else MUTED
        x = [v.fraction for v in track]
        left.plot(x, [v.forecast for v in track], "o-", color=colour, markersize=2.5, linewidth=1.2)
        banded = [v for v in track if v.low is not None and v.high is not None]
        left.fill_between(
            [v.fraction for v in banded],
            [v.low for v in banded],
            [v.high for v in banded],
            color=colour,
            alpha=0.10,
            linewidth=0,
        )
        end = one.figure
        if end is not None:
            left.plot([1.0], [end], "D", color=colour, markersize=4.5)
        ends.setdefault((round(x[-1], 1), round(track[-1].forecast or 0.0, 2)), []).append(one.index)
    for place, indices in ends.items():  # runs that stop at one place share a label
        words = ", ".join(f"#{index}" for index in indices)
        left.annotate(words, place, xytext=(6, 5), textcoords="offset points", fontsize=7.5)
    incumbents = [v.incumbent for one in shown for v in told[one.index] if v.incumbent is not None]
    if incumbents:
        left.axhline(incumbents[-1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="incumbent")
        left.legend(loc="upper right")
    centre = [v.forecast for one in shown for v in told[one.index] if v.forecast is not None]
    span = float(np.ptp(centre)) or abs(centre[0]) * 0.02
    left.set_ylim(min(centre) - 0.4 * span, max(centre) + 0.4 * span)
    left.set_xlim(0, 1.06)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    left.set_title("forecast of the end (◆ what came)")
    left.set_xlabel("share of the training budget")
    left.set_ylabel(label(experiments[0].metric) or "value")
    _calibration(right, runs, told)
    return figure


def forecast_check(experiments: Sequence[Experiment], verdicts: Verdicts) -> tuple[int, int]:
    """(runs whose measured value lay in the interval forecast half-way, runs that had one)."""
    pairs = [pair for one in experiments if (pair := _half_way(one, verdicts.get(one.index, ())))]
    inside = sum(v.low is not None and v.high is not None and v.low <= end <= v.high for v, end in pairs)
    return inside, len(pairs)


def _half_way(one: Experiment, told: Sequence[Verdict]) -> tuple[Verdict, float] | None:
    end = one.value
    near = [v for v in told if v.forecast is not None and abs(v.fraction - CHECK_AT) < 0.1]
    if end is None or not np.isfinite(end) or not near:
        return None
    return min(near, key=lambda v: abs(v.fraction - CHECK_AT)), end


def _calibration(axes: Axes, runs: Sequence[Experiment], told: Mapping[int, Sequence[Verdict]]) -> None:
    pairs = [pair for one in runs if (pair := _half_way(one, told[one.index]))]
    axes.set_title("forecast at 50 % against measured")
    axes.set_xlabel("measured")
    axes.set_ylabel("forecast, 90 % interval")
    if not pairs:
        axes.text(0.5, 0.5, "no finished run had a forecast yet", transform=axes.transAxes, ha="center", color=MUTED)
        return
    ends = np.array([end for _, end in pairs])
    middle = np.array([v.forecast for v, _ in pairs], dtype=float)
    low = np.array([v.low if v.low is not None else v.forecast for v, _ in pairs], dtype=float)
    high = np.array([v.high if v.high is not None else v.forecast for v, _ in pairs], dtype=float)
    axes.vlines(ends, low, high, color=BLUE, alpha=0.35, linewidth=1.2)
    axes.scatter(ends, middle, 16, BLUE, zorder=3)
    edge = (min(ends.min(), middle.min()), max(ends.max(), middle.max()))
    axes.axline((edge[0], edge[0]), slope=1, color=MUTED, linewidth=0.9)
    pad = 0.15 * (edge[1] - edge[0]) + 1e-6
    axes.set_xlim(edge[0] - pad, edge[1] + pad)
    axes.set_ylim(edge[0] - 3 * pad, edge[1] + 3 * pad)


def savings(experiments: Sequence[Experiment], budget_s: float) -> Figure | None:
    """Left: training time spent, and what it would have been without stops. Right: how early runs were stopped."""
    ran = [one for one in experiments if one.status in findings.RAN and one.index > 0]
    stopped = [one for one in ran if one.status is Status.STOPPED_EARLY]
    if not ran:
        return None
    figure = new_figure(2.9)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    x = [one.index for one in ran]
    spent = np.cumsum([one.costs.get("training", 0.0) for one in ran]) / 60
    saved = [
        max(0.0, budget_s - one.costs.get("training", 0.0)) if one.status is Status.STOPPED_EARLY else 0.0
        for one in ran
    ]
    full = spent + np.cumsum(saved) / 60
    left.plot(x, full, color=MUTED, linestyle=(0, (4, 3)), label="without stops")
    left.plot(x, spent, color=GREEN, label="spent")
    left.fill_between(x, spent, full, color=AMBER, alpha=0.25, linewidth=0, label=f"saved {duration(sum(saved))}")
    left.set_title("training time, minutes")
    left.set_xlabel("experiment")
    left.set_ylim(bottom=0)
    whole_numbers(left)
    left.legend(loc="upper left")
    shares = [min(1.0, one.costs.get("training", 0.0) / budget_s) for one in stopped] if budget_s > 0 else []
    right.hist(shares, bins=np.linspace(0, 1, 21), color=AMBER)
    right.set_title(f"when {len(stopped)} of {len(ran)} runs were stopped")
    right.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    right.set_xlabel("share of the training budget")
    right.set_ylabel("runs")
    return figure


def learning(points: Sequence[LearningPoint]) -> Figure | None:
    """What each update saw and did, over experiments."""
    if not points:
        return None
    figure = new_figure(4.2)
    grid = figure.subplots(2, 2, sharex=True)
    x = [point.index for point in points]
    dots = "o-" if len(points) <= 60 else "-"

    def series(axes: Axes, key: str, words: str, colour: str) -> None:
        pairs = [(point.index, point.metrics[key]) for point in points if key in point.metrics]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), dots, color=colour, markersize=3.5, label=words)

    rewards = [(point.index, point.reward_mean) for point in points if point.reward_mean is not None]
    if rewards:
        grid[0, 0].plot(*zip(*rewards, strict=True), dots, color=BLUE, markersize=3.5)
    grid[0, 0].axhline(0, color=MUTED, linewidth=0.8)
    grid[0, 0].set_title("mean reward of the batch")
    grid[0, 1].plot(x, [point.valid for point in points], dots, color=BLUE, markersize=3.5, label="trained")
    grid[0, 1].plot(x, [point.improving for point in points], dots, color=GREEN, markersize=3.5, label="improved")
    grid[0, 1].set_ylim(-0.04, 1.04)
    grid[0, 1].set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    grid[0, 1].set_title("share of proposals")
    series(grid[1, 0], "entropy", "entropy", AMBER)
    grid[1, 0].set_ylim(bottom=0)
    grid[1, 0].set_title("entropy, nats per free token")
    series(grid[1, 1], "kl_ref", "from the warm start", RED)
    series(grid[1, 1], "approx_kl", "of the update", BLUE)
    grid[1, 1].set_title("KL, nats per token")
    for axes in grid.flat:
        if axes.get_legend_handles_labels()[0] and axes is not grid[1, 0]:
            axes.legend(loc="best")
    for axes in grid[1]:
        axes.set_xlabel("experiment")
        whole_numbers(axes)
    return figure


def rates(gains: Sequence[float], epsilons: Sequence[float], metric: str) -> Figure | None:
    """p(ε) with its credible interval over ε."""
    if not gains:
        return None
    top = max([*gains, *epsilons, 1e-9])
    grid = np.linspace(0, 1.15 * top, 120)
    found = [improvement_rate(gains, float(epsilon)) for epsilon in grid]
    figure = new_figure(3.0, 5.6)
    axes = figure.subplots()
    axes.fill_between(
        grid,
        [r.low for r in found],
        [r.high for r in found],
        color=BLUE,
        alpha=0.14,
        linewidth=0,
        label="95 % credible",
    )
    axes.plot(grid, [r.median for r in found], color=BLUE, label="posterior median")
    for epsilon in epsilons:
        axes.axvline(epsilon, color=FAINT, linewidth=0.8)
    axes.set_ylim(0, 1.35 * max(rate.high for rate in found))
    axes.set_xlim(0, 1.15 * top)
    axes.set_xlabel(f"ε, gain in {metric}")
    axes.set_title("probability that one experiment gains more than ε")
    axes.legend(loc="upper right")
    return figure


def process(told: BestSoFar, first_index: int, metric: str) -> Figure | None:
    """The best so far and its compensated process."""
    if len(told.best) < 2:
        return None
    figure = new_figure(3.0, 5.6)
    axes = figure.subplots()
    x = np.arange(first_index, first_index + len(told.best))
    axes.step(x, told.best, where="post", color=GREEN, label="best so far (supermartingale)")
    axes.plot(x, told.compensated, color=MUTED, linewidth=1.2, label="expected gains given back (martingale, if right)")
    axes.set_xlabel("experiment")
    axes.set_title(f"best so far in {metric}")
    axes.legend(loc="best")
    whole_numbers(axes)
    return figure


def _finite(reports: Sequence[Report]) -> list[Report]:
    return [report for report in reports if np.isfinite(report.loss)]


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean over a few points: batch noise hides which curve is which."""
    width = min(9, len(y) // 8 * 2 + 1)
    if width < 3:
        return y
    padded = np.pad(y, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
