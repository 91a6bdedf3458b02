"""The end of a campaign in the terminal: table, best diff, plot, and where to look further."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from arl_core.memory import Memory
from arl_core.records import Experiment, confirmed_words
from arl_core.report.figures import closing_plot
from arl_core.report.findings import change_since
from flows.display import experiments_table
from flows.surroundings import ROOT

SHOWN_ROWS = 40
PLOT_DPI = 120


def print_summary(memory: Memory, campaign_id: str, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Print what a campaign found and return it as plain data: id, best, statuses, plot."""
    console = console or Console(width=None if Console().is_terminal else 140)
    experiments = memory.experiments(campaign_id, whole=False)
    best = memory.incumbent(campaign_id)
    console.print(f"\ncampaign {campaign_id}", markup=False, highlight=False)
    if len(experiments) > SHOWN_ROWS:
        console.print(f"(the last {SHOWN_ROWS} of {len(experiments)} experiments)")
    console.print(experiments_table(experiments[-SHOWN_ROWS:]))
    counts = Counter(one.status.value for one in experiments)
    console.print("  ".join(f"{status} {count}" for status, count in counts.items()), highlight=False)
    if best is not None and best.value is not None:
        console.print(f"\n{_best_words(best, experiments[0])}", highlight=False)
        if reruns := sum(_reruns(one) for one in experiments):
            spent_s = sum(one.costs.get("confirm", 0.0) for one in experiments)
            console.print(f"re-runs: {reruns} beside {len(experiments)} first runs, {spent_s:.0f} s", highlight=False)
        first = memory.experiment(campaign_id, 0)
        diff = change_since(first.source, best) if first else ""
        console.print(Text(diff or "the untouched target is still the best"))
    plot = folder / "best_so_far.png"
    closing_plot(experiments).savefig(plot, dpi=PLOT_DPI)
    console.print(f"plot:       {_short(plot)}", highlight=False)
    campaign = memory.get_campaign(campaign_id)
    if campaign.config.get("tracking", True):
        console.print(f"MLflow UI:  {_mlflow_page(folder.parent.parent)}", highlight=False)
    command = f"python -m flows.research --preset {campaign.preset} --resume {campaign_id} --iterations N"
    console.print(f"resume:     {command}", highlight=False)
    return {
        "campaign": campaign_id,
        "best_value": best.value if best else None,
        "best_confirmed": best.confirmed_value if best else None,
        "reruns": sum(_reruns(one) for one in experiments),
        "best_index": best.index if best else None,
        "statuses": dict(counts),
        "plot": str(plot),
    }


def _best_words(best: Experiment, first: Experiment) -> str:
    """Which experiment is the best, by what number, and whether that number was confirmed."""
    if best.confirmations and best.index:
        baseline = confirmed_words(first) or (
            f"{first.value:.4f} in one run" if first.value is not None else "no value"
        )
        words = f"{confirmed_words(best)} confirmed, by experiment {best.index}; experiment 0 has {baseline}"
    elif best.confirmations:
        words = f"{confirmed_words(best)}, the untouched target: nothing was confirmed to be better"
    else:
        had = f", experiment 0 had {first.value:.4f}" if first.value is not None and best.index else ""
        words = f"{best.value:.4f} by experiment {best.index}{had} (one run each, not confirmed)"
    return f"best: {best.metric} {words}"


def _reruns(one: Experiment) -> int:
    return int(one.extra.get("confirmation", {}).get("runs", 0))


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _mlflow_page(folder: Path) -> str:
    """Where the page is: a server's address, or the command that serves the database in `folder`."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_short(folder / 'mlflow.db')}"
    if store.startswith(("http://", "https://")):
        return store
    return f"mlflow ui --backend-store-uri {store}   (or: make ui)"
