"""The stopping verdict: the supervisor asks at each check, the judge answers with its evidence."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from arl_core.selfeval.curve import Curve
from arl_core.selfeval.forecast import FIRST_LOOK, Forecaster
from arl_core.selfeval.naive import power_law
from arl_core.selfeval.snapshot import AUDIT_RULE, NEVER_JUDGED, Snapshot
from frozen_env.contract import Judge, Progress, Report, Verdict

Rule = Literal["none", "naive", "ours"]
RULES: tuple[Rule, ...] = ("none", "naive", "ours")

ENOUGH_EARLIER = 12  # completed runs of earlier campaigns that stand in for the first ones of this
_SNAP = 0.011  # a check this near to a planned one (share of the budget) uses its fit
_DIVERGED = 1.02  # a loss above its start by this factor…
_RECENT = 8  # …in the median of so many last reports…
_AFTER = 0.02  # …after this share of the budget…
_EXPLODED = 1.5  # or by this factor at any time


def make_judge(snapshot: Snapshot, rule: str = "ours") -> Judge:
    """Prepare a judge for one run: all fitting on completed runs happens here, a check only evaluates.

    Raises ValueError for an unknown rule. Every rule stops a run that is not finite or diverges.
    """
    if rule not in RULES:
        raise ValueError(f"unknown stopping rule {rule!r}; known: {', '.join(RULES)}")
    forecaster = prepare(snapshot) if rule == "ours" else None

    def judge(progress: Progress) -> Verdict:
        broken = broken_run(progress.reports)
        if broken:
            return Verdict(True, broken, rule, progress.fraction, p_improve=0.0, incumbent=snapshot.incumbent)
        if rule == "none":
            return Verdict(False, "no stopping rule", rule, progress.fraction, incumbent=snapshot.incumbent)
        curve = Curve.from_reports(progress.reports)
        if rule == "naive":
            return naive_verdict(snapshot, curve, progress.fraction)
        assert rule == "ours", f"the rule {rule!r} has no branch here"
        return our_verdict(snapshot, forecaster, curve, progress.fraction)

    return judge


def prepare(snapshot: Snapshot) -> Forecaster | None:
    """Fit every planned check. None while there are too few completed runs to judge by."""
    own = sum(run.own for run in snapshot.completed)
    earlier = len(snapshot.completed) - own
    if snapshot.incumbent is None or (own < NEVER_JUDGED and earlier < ENOUGH_EARLIER):
        return None
    forecaster = Forecaster(snapshot)
    _ = forecaster.strictness
    return forecaster


def broken_run(reports: tuple[Report, ...]) -> str:
    """Say why a run is beyond hope (not finite, diverged, exploded), or return an empty string."""
    if not reports:
        return ""
    last = reports[-1]
    if not math.isfinite(last.loss):
        return f"the loss is {last.loss} at step {last.step}"
    start = next((r.loss for r in reports if math.isfinite(r.loss)), last.loss)
    recent = float(np.median([r.loss for r in reports[-_RECENT:]]))
    if start > 0 and len(reports) >= 3 and recent > _EXPLODED * start:
        return f"the loss exploded from {start:.4g} to {recent:.4g}"
    if start > 0 and len(reports) >= _RECENT and last.fraction > _AFTER and recent > _DIVERGED * start:
        return f"the loss diverged: {recent:.4g} is above its start, {start:.4g}"
    return ""


def naive_verdict(snapshot: Snapshot, curve: Curve, fraction: float) -> Verdict:
    """Stop when the power law's end is worse than the incumbent: the paper's rule."""
    end = power_law(curve.until(fraction))
    if end is None or snapshot.incumbent is None:
        return Verdict(False, "too few points for a power law", "naive", fraction, incumbent=snapshot.incumbent)
    offset, slope = snapshot.metric_of_loss()
    forecast = offset + slope * end
    worse = forecast > snapshot.incumbent if snapshot.direction == "lower" else forecast < snapshot.incumbent
    word = "worse" if worse else "not worse"
    reason = f"the power law ends at {forecast:.4f}, {word} than the incumbent's {snapshot.incumbent:.4f}"
    return Verdict(bool(worse), reason, "naive", fraction, forecast, incumbent=snapshot.incumbent)


def our_verdict(snapshot: Snapshot, forecaster: Forecaster | None, curve: Curve, fraction: float) -> Verdict:
    """Stop when a run that would tie the incumbent almost never looks this bad at this fraction."""
    incumbent = snapshot.incumbent
    if forecaster is None:
        own = sum(run.own for run in snapshot.completed)
        reason = f"cautious: {own} completed runs are too few to judge by, {NEVER_JUDGED} are needed"
        return Verdict(False, reason, "ours", fraction, incumbent=incumbent)
    planned = min(snapshot.checks, key=lambda check: abs(check - fraction), default=fraction)
    at = planned if abs(planned - fraction) <= _SNAP else fraction
    if at < FIRST_LOOK or len(curve.until(at).loss_N) == 0:
        reason = f"too early to judge at {fraction:.0%} of the budget"
        return Verdict(False, reason, "ours", fraction, incumbent=incumbent)
    seen = forecaster.outlook(curve, at)
    if not all(map(math.isfinite, (seen.forecast, seen.low, seen.high, seen.p_tie))):
        return Verdict(False, "the curve cannot be read", "ours", fraction, incumbent=incumbent)
    level = forecaster.stop_below(at)
    stop = seen.p_tie < level
    reason = (
        f"at {fraction:.0%} a run that ties the incumbent looks this bad with probability {seen.p_tie:.3f}, "
        f"{'under' if stop else 'not under'} the level {level:.3f}; forecast {seen.forecast:.4f} "
        f"[{seen.low:.4f}, {seen.high:.4f}] against {incumbent:.4f}"
    )
    rule = "ours"
    if stop and snapshot.audited:
        stop, rule, reason = False, AUDIT_RULE, f"{reason}; drawn for the audit, it goes on all the same"
    return Verdict(stop, reason, rule, fraction, seen.forecast, seen.low, seen.high, seen.p_tie, incumbent)
