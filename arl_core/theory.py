"""What the paper's theory says of a campaign's own results: p_min(ε), the sample-complexity bound, the best-so-far process.

The paper bounds the experiments until the next improvement by more than ε, with probability 1 - δ, by

    N ≥ log δ / log(1 - p_min(ε))                                                      (section on sample complexity)

where p_min(ε) is the least probability, over states that are not ε-optimal yet, that one experiment improves the
incumbent by more than ε. Nobody knows p_min; here it is estimated from what happened: k of n proposals did, so under a
Jeffreys prior p ~ Beta(k + ½, n - k + ½).

That takes each proposal for an independent draw with one unchanging p. Neither holds: the policy learns (p rises), easy
gains are used up (p falls), values are noisy (a lucky run counts as a gain). The estimate is therefore an average over
the past, no lower bound over the future; `drift` says whether the past itself speaks against an unchanging p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats

from frozen_env.contract import Direction

PRIOR = 0.5  # Jeffreys: both parameters of the Beta prior
CREDIBILITY = 0.95
DELTA = 0.05  # 1 - the confidence of "N more experiments"
MOST_EXPERIMENTS = 10**6  # a longer wait is told as "more than"


@dataclass(frozen=True)
class ImprovementRate:
    """p(ε) after `successes` of `trials`: the posterior's median and equal-tailed interval."""

    epsilon: float
    successes: int
    trials: int
    median: float
    low: float
    high: float

    @property
    def needed(self) -> int:
        """Experiments for another ε with 1 - δ: the bound at the posterior's median."""
        return experiments_needed(self.median)

    @property
    def needed_range(self) -> tuple[int, int]:
        """The bound at the interval's ends: (if p is high, if p is low)."""
        return experiments_needed(self.high), experiments_needed(self.low)

    @property
    def needed_predictive(self) -> int:
        """The same with the uncertainty of p integrated out (Beta-binomial): what to plan with after few experiments."""
        return experiments_needed_predictive(self.successes, self.trials)


def improvement_rate(gains: Sequence[float], epsilon: float) -> ImprovementRate:
    """Estimate p(ε) from the gain of every proposal over the incumbent of its time, in the metric's units.

    A proposal without a measured value is a trial without success: give it a gain of 0. NaN counts likewise. With no
    trial at all the answer is the prior's. ValueError for an ε that is negative or not finite.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a finite gain of 0 or more, got {epsilon!r}")
    successes = sum(gain > epsilon for gain in gains)
    posterior = stats.beta(successes + PRIOR, len(gains) - successes + PRIOR)
    tail = (1 - CREDIBILITY) / 2
    low, median, high = (float(posterior.ppf(q)) for q in (tail, 0.5, 1 - tail))
    return ImprovementRate(epsilon, successes, len(gains), median, low, high)


def experiments_needed(p: float, delta: float = DELTA) -> int:
    """Return the bound ⌈log δ / log(1 - p)⌉, at least 1 and at most MOST_EXPERIMENTS. ValueError outside (0, 1)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p!r}")
    if p == 0:
        return MOST_EXPERIMENTS
    if p == 1:
        return 1
    return max(1, min(MOST_EXPERIMENTS, math.ceil(math.log(delta) / math.log1p(-p))))


def experiments_needed_predictive(successes: int, trials: int, delta: float = DELTA) -> int:
    """Return the least N with P(no success in N | data) ≤ δ, p integrated over its posterior; capped likewise.

    P(none in N) = B(a, b + N) / B(a, b), with a = k + ½ and b = n - k + ½; it falls with N.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..trials, got {successes} of {trials}")
    a, b = successes + PRIOR, trials - successes + PRIOR

    def log_none(count: int) -> float:
        return float(special.betaln(a, b + count) - special.betaln(a, b))

    if log_none(MOST_EXPERIMENTS) > math.log(delta):
        return MOST_EXPERIMENTS
    low, high = 0, 1
    while log_none(high) > math.log(delta):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_none(middle) > math.log(delta) else (low, middle)
    return high


def drift(gains: Sequence[float], epsilon: float) -> float | None:
    """Return P(p in the later half < p in the earlier half | data), None with fewer than 8 proposals.

    Near ½: nothing speaks against an unchanging p. Near 1: gains have become rarer, and the bound is too hopeful.
    """
    if len(gains) < 8:
        return None
    half = len(gains) // 2
    early, late = (
        stats.beta(sum(g > epsilon for g in part) + PRIOR, sum(not g > epsilon for g in part) + PRIOR)
        for part in (gains[:half], gains[half:])
    )
    # E over the early posterior of P(late < p), on equally likely values of p: the density has no finite height at 0.
    quantiles = (np.arange(2000) + 0.5) / 2000
    return float(np.mean(late.cdf(early.ppf(quantiles))))


@dataclass(frozen=True)
class BestSoFar:
    """The best-so-far process M_0, M_1, … in the metric's units, and what Doob's decomposition makes of it.

    M never worsens, so it is a supermartingale (for a metric to be lowered), and as it is bounded it converges almost
    surely: the paper's convergence claim, true of any search that keeps its best. It says nothing of the limit or the
    speed. `compensated` adds back the gain that was to be expected before each experiment, estimated from the ones
    before it: if that estimate were right it would be a martingale and wander without trend. A trend against the
    metric's direction means that gains come slower than before; with it, faster.
    """

    best: NDArray[np.float64]
    compensated: NDArray[np.float64]


def best_so_far(start: float, gains: Sequence[float], direction: Direction) -> BestSoFar:
    """Return the process for a campaign that began at `start`. gains as in improvement_rate(); len(gains) + 1 points.

    The expected gain of experiment t is the mean gain of the t - 1 before it, with one experiment of gain 0 put in front. A
    gain below 0 counts as it is, so that the process ends at the incumbent's value; one that is not finite counts as 0.
    """
    sign = -1.0 if direction == "lower" else 1.0
    won = np.array([gain if math.isfinite(gain) else 0.0 for gain in gains], dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(won)])
    expected = total[:-1] / np.arange(1, len(won) + 1)
    best = start + sign * total
    compensated = best - sign * np.concatenate([[0.0], np.cumsum(expected)])
    return BestSoFar(best, compensated)


def gain_by_luck(noise_sd: float, runs: int) -> float:
    """Return the gain that noise alone would show: the best of a start and `runs` equal programs, each one draw of N(0, σ).

    0 for no noise or no run. A best-so-far that gained less may be no more than the luckiest of equals.
    """
    if not (math.isfinite(noise_sd) and noise_sd >= 0):
        raise ValueError(f"noise_sd must be 0 or more, got {noise_sd!r}")
    if runs < 1 or noise_sd == 0:
        return 0.0
    # E max of n standard normals = ∫ x n φ(x) Φ(x)^(n-1) dx; the start is one of the n, and its mean is 0.
    n = runs + 1

    def integrand(x: float) -> float:
        return float(x * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1))

    expected, _ = integrate.quad(integrand, -10, 10, limit=200)
    return noise_sd * float(expected)
