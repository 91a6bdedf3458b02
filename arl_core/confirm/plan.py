"""Which run comes next: pairs of candidate and incumbent on the same fresh seed, the incumbent's earlier runs reused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from frozen_env.contract import Direction


class Arm(StrEnum):
    """Who is run."""

    CANDIDATE = "candidate"
    INCUMBENT = "incumbent"


@dataclass(frozen=True)
class Run:
    """One run to be done."""

    arm: Arm
    seed: int


Results = Mapping[int, float | None]  # by seed; None: the run gave no value


def next_runs(seeds: Sequence[int], candidate: Results, incumbent: Results, pairs: int) -> list[Run]:
    """Return the runs that the first `pairs` pairs lack, in the order in which to do them one by one.

    The candidate goes first: if it fails, nothing was spent on the incumbent. A seed on which the incumbent failed makes
    no pair and is passed over.
    """
    runs: list[Run] = []
    for seed in [seed for seed in seeds if incumbent.get(seed, 0.0) is not None][:pairs]:
        runs += [Run(Arm.CANDIDATE, seed)] if seed not in candidate else []
        runs += [Run(Arm.INCUMBENT, seed)] if seed not in incumbent else []
    return runs


def paired_gains(seeds: Sequence[int], candidate: Results, incumbent: Results, direction: Direction) -> list[float]:
    """Return the candidate's gains (positive is better) over the incumbent, in the order of the seeds that both have."""
    gains = []
    for seed in seeds:
        mine, theirs = candidate.get(seed), incumbent.get(seed)
        if mine is not None and theirs is not None:
            gains.append(theirs - mine if direction == "lower" else mine - theirs)
    return gains


def seeds_in_order(seeds: Sequence[int], candidate: Results, incumbent: Results) -> list[int]:
    """Return the seeds before the first that still lacks a run: what looks have been taken on, however runs landed or were cut off.

    Looks on these alone are the same when they are taken again. A seed on which the incumbent failed lacks nothing.
    """

    def done(seed: int) -> bool:
        return incumbent.get(seed, 0.0) is None or (seed in candidate and seed in incumbent)

    return list(itertools.takewhile(done, seeds))
