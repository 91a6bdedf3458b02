"""What a stopping verdict needs to know of the campaign, as plain data that travels to another node as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arl_core.selfeval.curve import GRID, Curve, levels_and_errors
from frozen_env.contract import Direction, Verdict, is_better

DEFAULT_ALPHA = 0.4  # how often a run that exactly ties may be stopped; how it was chosen: docs/stopping.md
DEFAULT_AUDIT_SHARE = 0.05  # of runs that the forecast may not stop, so that calibration sees what it stops
BLUR_AT = 0.25  # the elapsed fraction at which the noise of a level is kept
NEVER_JUDGED = 4  # the first runs of a campaign run whole, unless earlier campaigns have taught enough
AUDIT_RULE = "audit"  # the rule of a verdict that would have stopped its run, had that not been drawn for the audit
MAX_OWN, MAX_EARLIER = 256, 256  # runs kept; a snapshot stays under 0.4 MB of JSON


@dataclass(frozen=True)
class PastRun:
    """One completed run, compact. levels: the loss at each fraction of GRID (nats/token; None before its first report).

    final is the measured metric; group names the campaign or series that the run belongs to; own: it is this campaign.
    rates is the learning rate over its peak on GRID, empty when it was not reported.
    blur is the standard error of its level at the fraction BLUR_AT, in nats/token: what noise alone would do.
    stands_for: how many runs of its kind it stands for, stopped ones included (stands_for()). sampled: it is of a random sample
    of all runs, since no forecast judged it or since it was drawn for the audit, whatever that said; else it is a survivor.
    """

    final: float
    levels: tuple[float | None, ...]
    group: str = ""
    own: bool = True
    blur: float = 0.0
    rates: tuple[float, ...] = ()
    stands_for: float = 1.0
    sampled: bool = True

    @classmethod
    def from_curve(cls, curve: Curve, final: float, group: str = "", own: bool = True) -> PastRun:
        """Resample a whole run's curve on GRID, each level from what had been seen by then."""
        level_C, error_C = levels_and_errors(curve, GRID)
        compact = tuple(None if math.isnan(x) else round(x, 6) for x in level_C.tolist())
        blur = float(error_C[int(BLUR_AT * len(GRID)) - 1])
        rates = () if curve.rate_C is None else tuple(round(x, 3) for x in curve.rate_C.tolist())
        return cls(float(final), compact, group, own, 0.0 if math.isnan(blur) else round(blur, 6), rates)


def stands_for(verdicts: Sequence[Verdict], audit_share: float) -> float:
    """Return how many runs of its kind, stopped ones included, a completed run stands for (Horvitz and Thompson 1952).

    1/audit_share when only the audit let it live, else 1. (Where nothing was audited nobody knows, and it is 1 too.)
    """
    only_audited = any(verdict.rule == AUDIT_RULE for verdict in verdicts)
    return 1 / audit_share if only_audited and audit_share > 0 else 1.0


def is_judged(verdicts: Sequence[Verdict]) -> bool:
    """Did a forecast judge this run, so that it might have been stopped?"""
    return any(verdict.forecast is not None for verdict in verdicts)


@dataclass(frozen=True)
class Snapshot:
    """Everything a verdict needs on any node.

    completed: whole runs in the order of their time (oldest first), own campaign and earlier ones. incumbent: the best
    final so far, None before the first. loss_scale turns nats/token into the metric's units (bits-per-byte:
    1/(ln 2 · bytes per token)); None has it learned from completed runs. alpha: how often a run that exactly ties may be stopped.
    checks: the elapsed fractions at which the supervisor plans to ask. audited: this run's forecast is noted and does not stop it.
    """

    completed: tuple[PastRun, ...] = ()
    incumbent: float | None = None
    direction: Direction = "lower"
    loss_scale: float | None = None
    alpha: float = DEFAULT_ALPHA
    checks: tuple[float, ...] = field(default_factory=lambda: tuple(k / 20 for k in range(1, 20)))
    audited: bool = False

    @classmethod
    def build(
        cls,
        completed: Sequence[PastRun],
        *,
        direction: Direction = "lower",
        loss_scale: float | None = None,
        alpha: float = DEFAULT_ALPHA,
        checks: Sequence[float] = tuple(k / 20 for k in range(1, 20)),
    ) -> Snapshot:
        """Bound the size: of own runs MAX_OWN (the first few, half the best, then the latest), of earlier ones the nearest to
        our best."""
        own = [run for run in completed if run.own and math.isfinite(run.final)]
        earlier = [run for run in completed if not run.own and math.isfinite(run.final)]
        best = None
        for run in own:
            best = run.final if best is None or is_better(run.final, best, direction) else best
        kept = tuple(_bound_own(own, direction)) + tuple(_bound_earlier(earlier, best))
        return cls(kept, best, direction, loss_scale, alpha, tuple(checks))

    def metric_of_loss(self) -> tuple[float, float]:
        """Give (offset, slope) with metric ≈ offset + slope · loss at the end of a run.

        slope is loss_scale when that is known; else the median of final over last level; for a metric that rises when
        the loss falls, minus the ratio of their spreads among completed runs. (0, 1) when nothing is known.
        """
        known = [(run.final, run.levels[-1]) for run in self.completed if run.levels[-1] is not None]
        pairs = np.array(known, dtype=np.float64).reshape(-1, 2)
        if self.direction == "higher":
            if len(pairs) < 2 or np.ptp(pairs[:, 1]) == 0 or np.ptp(pairs[:, 0]) == 0:
                return 0.0, -1.0
            slope = -float(pairs[:, 0].std() / pairs[:, 1].std())
            return float(pairs[:, 0].mean() - slope * pairs[:, 1].mean()), slope
        if self.loss_scale is not None:
            return 0.0, self.loss_scale
        pairs = pairs[(pairs > 0).all(axis=1)]
        return 0.0, float(np.median(pairs[:, 0] / pairs[:, 1])) if len(pairs) else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data. What most runs have by default is left out: it adds up over hundreds of them."""
        data = dataclasses.asdict(self)
        for run in data["completed"]:
            for name, usual in (("stands_for", 1.0), ("sampled", True)):
                if run[name] == usual:
                    del run[name]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Snapshot:
        fields = dict(data)
        fields["completed"] = tuple(
            PastRun(**{**run, "levels": tuple(run["levels"]), "rates": tuple(run.get("rates", ()))})
            for run in fields["completed"]
        )
        fields["checks"] = tuple(fields["checks"])
        return cls(**fields)


def _bound_own(runs: list[PastRun], direction: Direction) -> list[PastRun]:
    if len(runs) <= MAX_OWN:
        return runs
    sign = 1 if direction == "lower" else -1
    kept = set(sorted(range(len(runs)), key=lambda k: sign * runs[k].final)[: MAX_OWN // 2])
    kept |= set(range(NEVER_JUDGED))
    recent = [k for k in range(len(runs) - 1, -1, -1) if k not in kept][: MAX_OWN - len(kept)]
    return [runs[k] for k in sorted(kept | set(recent))]


def _bound_earlier(runs: list[PastRun], best: float | None) -> list[PastRun]:
    """Keep the runs that ended nearest to our incumbent: they say what a run that ties it looks like on the way."""
    if len(runs) <= MAX_EARLIER or best is None:
        return runs[-MAX_EARLIER:]
    order = np.argsort([abs(run.final - best) for run in runs], kind="stable")[:MAX_EARLIER]
    return [runs[k] for k in sorted(order.tolist())]
