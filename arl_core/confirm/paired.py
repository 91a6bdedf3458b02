"""The sequential test of one candidate: its gains over the incumbent on fresh seeds, seed by seed.

With n pairs of gains D_1..D_n (positive is better), the scale of one run

    s² = (b·s0² + Σ(D − mean D)² / 2) / (b + n − 1)        b: borrowed_df, s0²: the noise of other files

and t = mean D · √n / (√2·s), Student's t with b + n − 1 degrees of freedom when the candidate is level with the incumbent
and noise is normal, with this variance in every file (a moderated t: Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3). b is
small because files differ in their noise: a candidate is judged by its own pairs, and the others only steady it. They may
raise the scale, never lower it: where the pairs spread more than s0² says, b is 0 and t is Student's own. Else a candidate ten
times noisier would have a t too large by √(n/(n−1)), with a degree of freedom that knows nothing of it.

A candidate with level α is promoted at look n when the one-sided p of t is below α·w_n. The looks' weights sum to 1 and
grow as n³, so by the union bound a candidate that is level is promoted with probability of at most α, however it is
stopped. It is dropped when it cannot get there: when the gain so far plus one standard error, held to the last look, would
not pass that look's bound. Dropping early never promotes, so the level holds with or without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import stdtr, stdtrit

from arl_core.confirm.noise import Noise

LOOK_POWER = 3  # chosen by power at equal cost in bench.confirmation: late looks get most of the error
OPTIMISM = 1.0  # standard errors granted to a candidate before it is dropped


class Decision(StrEnum):
    """What follows from the pairs so far."""

    CONTINUE = "continue"
    PROMOTE = "promote"
    DROP = "drop"


@dataclass(frozen=True)
class Judgement:
    """A decision with its evidence. gain and error (one standard error of it) are in the metric's units.

    p is one-sided and corrected for the looks taken: to be compared with the candidate's level. 1 before the first look.
    """

    decision: Decision
    pairs: int
    gain: float
    error: float
    p: float
    level: float


@dataclass(frozen=True)
class PairedTest:
    """The design of a test: looks after first_look, first_look + 1, …, max_pairs pairs."""

    max_pairs: int
    first_look: int = 3
    borrowed_df: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.first_look <= self.max_pairs:
            raise ValueError(
                f"first_look must lie in 2..max_pairs = {self.max_pairs}, got {self.first_look}: "
                "one pair says nothing about a candidate's own noise"
            )
        if self.borrowed_df < 0:
            raise ValueError(f"borrowed_df must not be negative, got {self.borrowed_df!r}")

    def weight(self, pairs: int) -> float:
        """The share of the candidate's level that the look after so many pairs may use; 0 where there is no look."""
        if not self.first_look <= pairs <= self.max_pairs:
            return 0.0
        return float(pairs**LOOK_POWER) / sum(float(n**LOOK_POWER) for n in range(self.first_look, self.max_pairs + 1))

    def borrowed(self, squares: float, pairs: int, noise: Noise | None) -> float:
        """Return the degrees of freedom that other files' noise counts for: none where the pairs' own is the larger."""
        return self.borrowed_df if noise is not None and squares <= (pairs - 1) * noise.variance else 0.0

    def judge(self, gains: Sequence[float], noise: Noise | None, level: float) -> Judgement:
        """Judge a candidate by its gains so far, in the order of its pairs. `noise` is that of other files, None: unknown.

        Raises ValueError for a level outside (0, 1), for no gains, more than max_pairs, or one that is not finite.
        """
        n = len(gains)
        if not 0 < level < 1:
            raise ValueError(f"a level lies between 0 and 1, got {level!r}")
        if not 1 <= n <= self.max_pairs or not all(math.isfinite(gain) for gain in gains):
            raise ValueError(f"a test takes 1 to {self.max_pairs} finite gains, got {list(gains)!r}")
        gain = float(np.mean(gains))
        own = float(((np.array(gains) - gain) ** 2).sum()) / 2
        borrowed = self.borrowed(own, n, noise)
        df = borrowed + n - 1
        squares = borrowed * (noise.variance if noise else 0.0) + own
        error = math.sqrt(2 * squares / df / n) if df else math.inf
        t = gain / error if 0 < error < math.inf else math.copysign(math.inf, gain) if gain else 0.0
        weight = self.weight(n)
        p = min(1.0, float(stdtr(df, -t)) / weight) if weight else 1.0
        decision = Decision.CONTINUE
        if p < level:
            decision = Decision.PROMOTE
        elif n == self.max_pairs or self._is_hopeless(t, n, borrowed, level):
            decision = Decision.DROP
        return Judgement(decision, n, gain, error, p, level)

    def judge_new(self, gains: Sequence[float], seen: int, noise: Noise | None, level: float) -> Judgement:
        """Judge pairs that came together, where `seen` of them had been judged before. Raises ValueError as judge() does.

        The first look that promotes counts, as it would have one by one; what was paid for already, all pairs must drop.
        """
        looks = [self.judge(gains[:n], noise, level) for n in range(min(seen, len(gains) - 1) + 1, len(gains) + 1)]
        return next((one for one in looks if one.decision is Decision.PROMOTE), looks[-1])

    def _is_hopeless(self, t: float, n: int, borrowed: float, level: float) -> bool:
        """Would the gain seen, plus one standard error, still miss the last look's bound?"""
        if t <= 0 or math.isinf(t):
            return t <= 0
        last = self.max_pairs
        bound = float(stdtrit(borrowed + last - 1, 1 - level * self.weight(last)))
        return (t + OPTIMISM) * math.sqrt(last / n) < bound
