"""Does early stopping hold its α when it calibrates on runs that it let live? A simulation, campaign after campaign.

    python -m bench.stopping_drift --json                       # with the default audit share
    python -m bench.stopping_drift --audit-share 0 --trusting --json    # without, as it was: the selection carries on

Candidates end at or above the incumbent, which stands still, so that nothing but the calibration can move. Each campaign
judges until so many runs are complete; they are the history of the next. At some numbers of completed runs, fresh runs that
exactly tie are judged, and the share of them that any check stops is counted: it should be at most α. Curves are a power law
with a drop at the end under noise, as in tests/arl_core/selfeval/campaigns.py. In docs/stopping.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arl_core.selfeval.curve import Curve, levels_and_errors
from arl_core.selfeval.forecast import FIRST_LOOK, PAST, Forecaster
from arl_core.selfeval.judge import prepare
from arl_core.selfeval.snapshot import DEFAULT_ALPHA, DEFAULT_AUDIT_SHARE, PastRun, Snapshot

CHECKS = tuple(k / 10 for k in range(1, 10))
INCUMBENT = 2.0  # nats
REPORTS, NOISE = 300, 0.05
SPREADS = {"near": 0.01, "wide": 0.04}  # candidates end above the incumbent by the absolute value of a normal, in nats
COUNTED_AT = (4, 20, 50, 100)


@dataclass(frozen=True)
class Drawn:
    """A run that would end level with the incumbent; another end shifts every level."""

    past: PastRun
    level_LP: np.ndarray  # at each check, now and at the shares PAST of the elapsed time
    error_L: np.ndarray

    def ending(self, above: float) -> Drawn:
        levels = tuple(None if x is None else x + above for x in self.past.levels)
        past = dataclasses.replace(self.past, final=self.past.final + above, levels=levels)
        return dataclasses.replace(self, past=past, level_LP=self.level_LP + above)


def draw(rng: np.random.Generator) -> Drawn:
    """Draw a run: its power law and its drop differ from run to run, and its losses are noisy."""
    fraction_N = np.arange(1, REPORTS + 1) / REPORTS
    law_N = rng.normal(0.25, 0.02) * (fraction_N**-0.4 - 1)
    drop_N = rng.normal(0.10, 0.015) * np.minimum(1.0, (1 - fraction_N) / rng.uniform(0.4, 0.6))
    loss_N = INCUMBENT + law_N + drop_N + rng.normal(0, NOISE, REPORTS)
    curve = Curve.from_points(fraction_N, loss_N, np.zeros(REPORTS, dtype=bool))
    seen_L2P = np.array([levels_and_errors(curve.until(f), np.array([f, *(f * s for s in PAST)])) for f in CHECKS])
    return Drawn(PastRun.from_curve(curve, INCUMBENT), seen_L2P[:, 0], seen_L2P[:, 1, 0])


def is_stopped(forecaster: Forecaster | None, run: Drawn) -> bool:
    """Would any check stop it?"""
    return forecaster is not None and any(
        forecaster.p_tie(run.level_LP[k], f, float(run.error_L[k])) < forecaster.stop_below(f)
        for k, f in enumerate(CHECKS)
        if f >= FIRST_LOOK
    )


def fitted(completed: Sequence[PastRun], alpha: float) -> Forecaster | None:
    snapshot = Snapshot.build(completed, loss_scale=1.0, alpha=alpha, checks=CHECKS)
    return prepare(dataclasses.replace(snapshot, incumbent=INCUMBENT))


@dataclass
class Simulation:
    """Campaign after campaign on one history. `trusting`: an earlier campaign's survivors are taken for never judged, as they were
    until the audit came."""

    spread: float
    alpha: float
    audit_share: float
    trusting: bool
    rng: np.random.Generator
    ties: Sequence[Drawn]
    history: list[PastRun] = field(default_factory=list)

    def campaign(self, size: int) -> dict[str, Any]:
        """Judge candidates until so many runs are complete."""
        done: list[PastRun] = []
        proposed, forecaster = 0, fitted(self.history, self.alpha)
        stopped = {0: self.share_stopped(forecaster)} if forecaster else {}
        while len(done) < size:
            proposed += 1
            run = draw(self.rng).ending(abs(self.rng.normal(0, self.spread)))
            audited, would_stop = self.rng.random() < self.audit_share, is_stopped(forecaster, run)
            if would_stop and not audited:
                continue
            known = 1 / self.audit_share if would_stop else 1.0
            done.append(dataclasses.replace(run.past, stands_for=known, sampled=audited or forecaster is None))
            forecaster = fitted([*self.history, *done], self.alpha)
            if len(done) in COUNTED_AT:
                stopped[len(done)] = self.share_stopped(forecaster)
        earlier = [dataclasses.replace(one, own=False) for one in done]
        if self.trusting:
            earlier = [dataclasses.replace(one, sampled=True) for one in earlier]
        self.history = [*self.history, *earlier]
        return {"proposed": proposed, "ties_stopped": stopped}

    def share_stopped(self, forecaster: Forecaster | None) -> float:
        return float(np.mean([is_stopped(forecaster, run) for run in self.ties]))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench.stopping_drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=4, help="one after the other")
    parser.add_argument("--runs", type=int, default=100, help="completed runs of a campaign")
    parser.add_argument("--ties", type=int, default=250, help="runs that exactly tie, judged at each count")
    parser.add_argument("--repeats", type=int, default=5, help="of the whole, on other seeds; means are shown")
    parser.add_argument("--alpha", type=float, default=DEFAULT_ALPHA)
    parser.add_argument("--audit-share", type=float, default=DEFAULT_AUDIT_SHARE)
    parser.add_argument("--trusting", action="store_true", help="take survivors of earlier campaigns for never judged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(argv)
    ties = [draw(np.random.default_rng([args.seed, number])) for number in range(args.ties)]
    result: dict[str, Any] = {"alpha": args.alpha, "audit_share": args.audit_share, "spreads": {}}
    for name, spread in SPREADS.items():
        played = []
        for repeat in range(args.repeats):
            rng = np.random.default_rng([args.seed, repeat, 1])
            simulation = Simulation(spread, args.alpha, args.audit_share, args.trusting, rng, ties)
            played.append([simulation.campaign(args.runs) for _ in range(args.campaigns)])
        result["spreads"][name] = [mean(one) for one in zip(*played, strict=True)]
        for number, one in enumerate(result["spreads"][name], 1):
            shares = "  ".join(f"{count}: {share:.2f}" for count, share in one["ties_stopped"].items())
            print(f"{name} campaign {number}: {one['proposed']:.0f} candidates; ties stopped at {shares}", flush=True)
    if args.json:
        print(json.dumps(result))
    return result


def mean(played: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = played[0]["ties_stopped"]
    shares = {count: round(float(np.mean([one["ties_stopped"][count] for one in played])), 3) for count in counts}
    return {"proposed": round(float(np.mean([one["proposed"] for one in played])), 1), "ties_stopped": shares}


if __name__ == "__main__":
    main()
