"""Best-so-far against simulated GPU hours: mean over seeds ± one standard error, one line per arm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "random": "#9a9a9a",
    "local": "#4c78a8",
    "local_critic": "#1b3a5c",
    "tpe": "#f2a541",
    "cmaes": "#6b9e5b",
    "greedy": "#b279a2",
    "rl": "#d1495b",
    "ppo": "#7a5195",
    "critic": "#2a9d8f",
}


def draw(entries: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG. Entries are those of the results file, cut at their hours; each arm needs at least one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    hours = np.linspace(0.1, max(entry["hours"] for entry in entries), 400)
    for arm in dict.fromkeys(entry["arm"] for entry in entries):
        lines_SH = np.array([_staircase(entry["trace"], hours) for entry in entries if entry["arm"] == arm])
        mean_H, count = lines_SH.mean(axis=0), len(lines_SH)
        error_H = lines_SH.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.zeros_like(mean_H)
        label = f"{arm} {mean_H[-1]:.4f} ({count} seed{'s' if count > 1 else ''})"
        axes.plot(hours, mean_H, color=COLOURS.get(arm), label=label, zorder=3)
        axes.fill_between(hours, mean_H - error_H, mean_H + error_H, color=COLOURS.get(arm), alpha=0.15, lw=0)
    low = min(entry["best"] for entry in entries)
    axes.set(
        xlabel="simulated GPU hours", ylabel="val_bpb of the incumbent, without noise", ylim=(low - 0.001, low + 0.02)
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _staircase(trace: list[tuple[float, float]], hours: Any) -> Any:
    """Return the incumbent's value at each hour; before the first, the first."""
    times, values = np.array(trace).T
    return values[np.maximum(np.searchsorted(times, hours, side="right") - 1, 0)]
