"""The end of a campaign in the terminal: table, best diff, plot, and where to look further."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from arl_core.memory import Memory
from arl_core.records import Experiment
from flows.display import experiments_table
from flows.surroundings import ROOT
from frozen_env.contract import Status

SHOWN_ROWS = 40


def print_summary(memory: Memory, campaign_id: str, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Print what a campaign found and return it as plain data: id, best, statuses, plot."""
    console = console or Console(width=None if Console().is_terminal else 140)
    experiments = memory.experiments(campaign_id)
    best = memory.incumbent(campaign_id)
    console.print(f"\ncampaign {campaign_id}", markup=False, highlight=False)
    if len(experiments) > SHOWN_ROWS:
        console.print(f"(the last {SHOWN_ROWS} of {len(experiments)} experiments)")
    console.print(experiments_table(experiments[-SHOWN_ROWS:]))
    counts = Counter(one.status.value for one in experiments)
    console.print("  ".join(f"{status} {count}" for status, count in counts.items()), highlight=False)
    if best is not None and best.value is not None:
        first = experiments[0].value
        gain = f", experiment 0 had {first:.4f}" if first is not None and best.index else ""
        console.print(
            f"\nbest: {best.metric} {best.value:.4f} by experiment {best.index}{gain} (one run each, not confirmed)"
        )
        console.print(Text(cumulative_diff(experiments, best) or "the untouched target is still the best"))
    plot = plot_best_so_far(experiments, folder / "best_so_far.png")
    console.print(f"plot:       {_short(plot)}", highlight=False)
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_short(folder.parent.parent / 'mlflow.db')}"
    console.print(f"MLflow UI:  mlflow ui --backend-store-uri {store}   (or: make ui)", highlight=False)
    console.print(f"resume:     python -m flows.research --resume {campaign_id} --iterations N", highlight=False)
    return {
        "campaign": campaign_id,
        "best_value": best.value if best else None,
        "best_index": best.index if best else None,
        "statuses": dict(counts),
        "plot": str(plot),
    }


def cumulative_diff(experiments: list[Experiment], best: Experiment) -> str:
    """The best source against experiment 0's, as one unified diff."""
    from arl_core.edit import canonical_diff

    return canonical_diff(experiments[0].source, best.source) if best.index else ""


def plot_best_so_far(experiments: list[Experiment], path: Path) -> Path:
    """Draw every measured or forecast value and the staircase of the best so far. Returns path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    measured = [(one.index, one.value) for one in experiments if one.value is not None]
    forecast = [(one.index, one.estimate) for one in experiments if one.value is None and one.estimate is not None]
    kept = [(one.index, one.value) for one in experiments if one.status is Status.KEPT and one.value is not None]
    if measured:
        axes.plot(*zip(*measured, strict=True), "o", color="tab:blue", label="measured")
    if forecast:
        axes.plot(*zip(*forecast, strict=True), "o", mfc="none", color="tab:orange", label="stopped early (forecast)")
    if kept:
        steps = [*kept, (experiments[-1].index, kept[-1][1])]
        axes.step(*zip(*steps, strict=True), where="post", color="tab:green", label="best so far")
    axes.set_xlabel("experiment")
    axes.set_ylabel(experiments[0].metric if experiments else "")
    axes.set_title(f"{experiments[0].campaign_id}: one run each, seeds as recorded" if experiments else "")
    if measured or forecast:
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
