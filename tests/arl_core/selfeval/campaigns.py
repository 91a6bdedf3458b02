"""A simulated campaign: curves that fall by a power law, then faster while the learning rate decays, under noise."""

from __future__ import annotations

import numpy as np

from arl_core.selfeval import Curve, PastRun, Snapshot
from frozen_env.contract import Progress, Report

BUDGET_S = 300.0
SCALE = 0.6  # bits-per-byte per nat/token of the imagined tokenizer


def loss_curve(final: float, fraction_N: np.ndarray, rng: np.random.Generator, noise: float = 0.05) -> np.ndarray:
    """Draw a run that ends at `final` nats: its power law and its decay's drop differ from run to run."""
    law = rng.normal(0.25, 0.02) * (fraction_N**-0.4 - 1)
    drop = rng.normal(0.10, 0.015) * np.minimum(1.0, (1 - fraction_N) / rng.uniform(0.4, 0.6))
    return final + law + drop + rng.normal(0, noise, len(fraction_N))


def reports(final: float, *, n: int = 300, seed: int = 0, noise: float = 0.05, unit: float = 1.0) -> tuple[Report, ...]:
    """Report n training losses, evenly over the budget, in units of `unit` nats."""
    fraction_N = np.arange(1, n + 1) / n
    loss_N = unit * loss_curve(final, fraction_N, np.random.default_rng(seed), noise)
    return tuple(
        Report(k + 1, BUDGET_S * f, f, y, 0.01)
        for k, (f, y) in enumerate(zip(fraction_N.tolist(), loss_N.tolist(), strict=True))
    )


def progress(run: tuple[Report, ...], fraction: float) -> Progress:
    """Show a run as the supervisor sees it at a fraction of the budget."""
    return Progress(tuple(r for r in run if r.fraction <= fraction), BUDGET_S * fraction, BUDGET_S)


def snapshot(finals: list[float], *, unit: float = 1.0, scale: float | None = SCALE, alpha: float = 0.15) -> Snapshot:
    """A campaign whose completed runs ended at these nats; the metric is SCALE times as large."""
    runs = [
        PastRun.from_curve(Curve.from_reports(reports(final, seed=1000 + k, unit=unit)), SCALE * final)
        for k, final in enumerate(finals)
    ]
    return Snapshot.build(runs, loss_scale=None if scale is None else scale / unit, alpha=alpha)
