"""Which run comes next: pairs of candidate and incumbent on the same fresh seed, the incumbent's earlier runs reused."""

from __future__ import annotations

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


def next_run(seeds: Sequence[int], candidate: Results, incumbent: Results) -> Run | None:
    """Return the run that the next pair lacks, None when every pair is whole.

    The candidate goes first: if it fails, nothing was spent on the incumbent. A seed on which the incumbent failed makes
    no pair and is passed over.
    """
    for seed in seeds:
        if seed in incumbent and incumbent[seed] is None:
            continue
        if seed not in candidate:
            return Run(Arm.CANDIDATE, seed)
        if seed not in incumbent:
            return Run(Arm.INCUMBENT, seed)
    return None


def paired_gains(seeds: Sequence[int], candidate: Results, incumbent: Results, direction: Direction) -> list[float]:
    """Return the candidate's gains (positive is better) over the incumbent, in the order of the seeds that both have."""
    gains = []
    for seed in seeds:
        mine, theirs = candidate.get(seed), incumbent.get(seed)
        if mine is not None and theirs is not None:
            gains.append(theirs - mine if direction == "lower" else mine - theirs)
    return gains
