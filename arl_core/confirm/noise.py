"""How far apart are two runs of one file? A pooled variance, with the degrees of freedom that say how well it is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri


@dataclass(frozen=True)
class Noise:
    """The variance of one run of one file, in the metric's units squared, from `df` degrees of freedom."""

    variance: float
    df: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.variance) and self.variance >= 0):
            raise ValueError(f"a variance is finite and not negative, got {self.variance!r}")
        if self.df < 1:
            raise ValueError(f"a variance that was measured has at least 1 degree of freedom, got {self.df!r}")

    @property
    def sd(self) -> float:
        """Standard deviation of one run."""
        return math.sqrt(self.variance)

    @property
    def sd_difference(self) -> float:
        """Standard deviation of the difference of two runs."""
        return math.sqrt(2 * self.variance)

    def interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Return the interval of `sd` at this confidence, from the chi-squared law; exact for normal noise."""
        if not 0 < confidence < 1:
            raise ValueError(f"a confidence lies between 0 and 1, got {confidence!r}")
        tail = (1 - confidence) / 2
        squares = self.variance * self.df
        # chdtri(df, p) is the value that chi-squared exceeds with probability p
        return math.sqrt(squares / float(chdtri(self.df, tail))), math.sqrt(squares / float(chdtri(self.df, 1 - tail)))


def pooled(repeats: Iterable[Sequence[float]], differences: Iterable[Sequence[float]] = ()) -> Noise | None:
    """Pool the variance of one run over files. None when nothing was repeated.

    `repeats`: for each file its results on several seeds. `differences`: for each candidate its gains over the incumbent,
    seed by seed; the variance of a difference is twice that of a run. What a seed does to both files alike is in the first
    and not in the second, so that the floor is, if anything, too high at first. Values that are not finite are left out.
    """
    squares, df = 0.0, 0
    for groups, share in ((repeats, 1.0), (differences, 0.5)):
        for group in groups:
            values = np.array([value for value in group if math.isfinite(value)])
            if len(values) > 1:
                squares += share * float(((values - values.mean()) ** 2).sum())
                df += len(values) - 1
    return Noise(squares / df, df) if df else None


def moderated(values: Sequence[float], noise: Noise | None, borrowed_df: float) -> float | None:
    """Return the standard deviation of one run of the file that gave these values, as the paired test judges it.

    Its own spread, steadied by that of other files where it is the smaller (paired.py). With fewer than two values only
    the others' is known; None when that is not either.
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if len(known) < 2:
        return noise.sd if noise is not None else None
    squares, df = float(((known - known.mean()) ** 2).sum()), len(known) - 1.0
    if noise is not None and squares <= df * noise.variance:
        squares, df = squares + borrowed_df * noise.variance, df + borrowed_df
    return math.sqrt(squares / df)


def worth_a_second_look(gain: float, noise: Noise | None, factor: float) -> bool:
    """Does a gain on one run ask for re-runs? From `factor` standard deviations of a difference on; any gain if unknown."""
    return gain > (factor * noise.sd_difference if noise is not None else 0.0)
