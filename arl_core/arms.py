"""The arms of a comparison: one loop, one budget, another proposer. And what their results amount to.

An arm is a handful of settings, which the user's override where both name one. All else (environment, stopping, confirmation,
memory, reward) is the same code and the same values, so that a difference is the proposer's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from arl_core.records import Experiment
from arl_core.report.findings import RAN, best_of, improvements
from arl_core.second_look import gain_over
from frozen_env.contract import Direction

ARMS: dict[str, dict[str, Any]] = {
    "seed": {"policy.proposer": "none"},
    "random": {"policy.proposer": "random"},
    "random_critic": {"policy.proposer": "random_critic", "policy.choices": 8},
    "greedy": {"policy.learn": False},
    "rl": {},
}
WORDS = {
    "seed": "the untouched target, run again and again",
    "random": "random valid edits, the best kept",
    "random_critic": "random valid edits, the critic choosing among several: no language model",
    "greedy": "the policy as warm-started, never updated, the best kept; as rl, with a critic where policy.choices is above 1",
    "rl": "the whole system",
}


@dataclass(frozen=True)
class ArmRun:
    """One campaign of one arm. rerun: the best program's mean on seeds that no campaign selected on; None: not re-run
    on all of them, or failed on failed_reruns of them. Means over different seeds would not compare."""

    arm: str
    seed: int
    experiments: int  # after experiment 0
    trained: int
    improvements: int
    start: float | None
    best: float | None
    best_index: int | None
    rerun: float | None
    hours: float
    failed_reruns: int = 0

    @classmethod
    def of(
        cls,
        arm: str,
        seed: int,
        experiments: Sequence[Experiment],
        rerun: Sequence[float | None] = (),
        hours: float = 0.0,
    ) -> ArmRun:
        """`rerun`: one value per fresh seed, None where the program failed."""
        values = [value for value in rerun if value is not None]
        failed = len(rerun) - len(values)
        best = best_of(experiments)
        return cls(
            arm=arm,
            seed=seed,
            experiments=max(0, len(experiments) - 1),
            trained=sum(one.status in RAN and one.index > 0 for one in experiments),
            improvements=len(improvements(experiments)),
            start=experiments[0].figure if experiments else None,
            best=best.figure if best else None,
            best_index=best.index if best else None,
            rerun=statistics.fmean(values) if values and not failed else None,
            hours=hours,
            failed_reruns=failed,
        )


@dataclass(frozen=True)
class Interval:
    """Mean over campaign seeds with its 95 % t-interval; half is None for fewer than two."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.half:.4f}" if self.half is not None else "") + f" (n={self.count})"


def interval(values: Sequence[float | None]) -> Interval | None:
    """Return mean and 95 % interval of the finite values; None when there is none. Student's t: seeds are few."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    count = len(known)
    half = None
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(known) / math.sqrt(count)
    return Interval(statistics.fmean(known), half, count)


def gain_against(runs: Sequence[ArmRun], base: Sequence[ArmRun], direction: Direction) -> Interval | None:
    """Return the re-run gain over the base arm's re-run, paired by campaign seed: what an arm found beyond luck."""
    by_seed = {run.seed: run.rerun for run in base}
    gains = [
        gain_over(run.rerun, before, direction)
        for run in runs
        if run.rerun is not None and (before := by_seed.get(run.seed)) is not None
    ]
    return interval(gains)
