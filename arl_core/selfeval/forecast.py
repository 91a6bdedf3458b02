"""The forecaster: what a run's level at an elapsed fraction says of its final result, learned from completed runs.

Two regressions per fraction on completed runs, both Bayesian, so that four runs already give an honest, wide answer:

- *forecast*: final ~ level now and its recent past. It says where the run will end (for the log and for the reward).
- *tie*: level now ~ final and recent past, near the incumbent. It says what a run that would tie the incumbent looks like
  at this fraction: the drop still to come is in it. A run is judged against that, so the verdict does not depend on how
  many bad candidates the policy happens to propose.

Everything is divided by the incumbent's loss: the answers do not depend on units. Shapes: N completed runs, C grid
columns, P coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from arl_core.selfeval.curve import GRID, Curve, levels_and_errors
from arl_core.selfeval.regression import Regression, fit, fit_robust, student_cdf
from arl_core.selfeval.snapshot import BLUR_AT, NEVER_JUDGED, Snapshot

Array = NDArray[np.float64]

PAST = (0.8, 0.6, 0.4, 0.2)  # the recent past: levels at these shares of the elapsed fraction, minus the level now
FIRST_LOOK = 0.08  # before this fraction the start still shows more than the run
_NEAR = 0.005  # relative distance from the incumbent's final within which completed runs count most in the tie
_ENOUGH = 8.0  # widen that distance until completed runs weigh as much as so many
_CLIP = 0.07  # features beyond ±7 % of the loss are as good as 7 %
_HARVEST, _PAST_SD = 0.2, 0.05  # prior: of what a run fell since each earlier share, so much is no longer to come…
_HARVEST_FROM, _HARVEST_ALL = 0.25, 0.6  # …not before this fraction, in full from that one: early falls are the start's
_RATE, _RATE_SD = 0.03, 0.03  # prior: loss still to drop per unit of learning rate over its peak (annealing law)
_PATIENCE = 1.5  # a check at fraction f asks for 1 + 1.5·f times the evidence: late errors cost more than they save
_SCALE, _SCALE_EARLY = 0.012, 0.05  # prior residual scale of a level, relative: late, and added at the start
_TIE_SLOPE, _TIE_SLOPE_SD = 0.6, 0.25  # prior: a run that ends 1 % lower stands so much lower now
_USUAL_SHARE = 0.25  # of completed runs that improve; more often, and a campaign is judged with a smaller alpha…
_CAUTION = 3.0  # …by this power of the excess, as far as only its own, worse runs have taught the drop
_DOF0 = 10.0  # the prior on the residual scale is worth so many runs
_PRIOR_PATHS = 30.0  # the prior on the worst deviation of a whole run is worth so many runs: four draws are mere noise
_EFFECTIVE_LOOKS = 4.0  # without draws, a run's checks are taken for this many independent ones


def prior_scale(fraction: float) -> float:
    """Guess the relative residual scale of a level at a fraction, before any run has taught better."""
    return _SCALE + _SCALE_EARLY * float(np.exp(-fraction / 0.08))


def _patience(fraction: float) -> float:
    return 1.0 + _PATIENCE * fraction


def _harvest(fraction: float) -> Array:
    """Give the prior of the recent past's coefficients in the tie, one per share of PAST.

    Who ends level but fell more of late has begun its decay earlier and has less of the drop to come (annealing law:
    the drop is proportional to the rate already decayed, Tissue et al. 2408.11029, equation 1). The nearest share is
    left out: over so short a time a fall is mostly noise.
    """
    grown = min(1.0, max(0.0, (fraction - _HARVEST_FROM) / (_HARVEST_ALL - _HARVEST_FROM)))
    return -_HARVEST * grown * np.array([0.0, *[1.0] * (len(PAST) - 1)])


@lru_cache(maxsize=8)
def _prior_risk(checks: tuple[float, ...]) -> tuple[Array, Array]:
    """Give levels of strictness, rising, and the prior probability that a run which ties is stopped under each."""
    grid = np.linspace(-4.0, 4.0, 801)  # below zero a run must look better than a tie: the frontier's bold end
    one_look = np.mean([special.ndtr(-grid * _patience(f)) for f in checks], axis=0)
    return grid, 1.0 - (1.0 - one_look) ** _EFFECTIVE_LOOKS


@dataclass(frozen=True)
class Look:
    """The tie at one fraction, and what the forecast shares with it; p_N: completed runs' own left-out tie probabilities."""

    tie: Regression
    centre_P: Array
    past_NP: Array
    s0: float
    p_N: Array


@dataclass(frozen=True)
class Outlook:
    """What is known of a run at one check. forecast, low and high (90 %) are in the metric's units."""

    forecast: float
    low: float
    high: float
    p_tie: float  # a run that ties the incumbent looks this bad or worse at this fraction


class Forecaster:
    """Learn from a snapshot's completed runs. Needs an incumbent; ValueError without one."""

    def __init__(self, snapshot: Snapshot) -> None:
        if snapshot.incumbent is None:
            raise ValueError("a forecaster needs an incumbent, the snapshot has no completed run of its own")
        runs = snapshot.completed
        self.snapshot = snapshot
        self.level_NC = np.array([[np.nan if x is None else x for x in run.levels] for run in runs], dtype=np.float64)
        unknown = (np.nan,) * len(GRID)
        self.rate_NC = np.array([run.rates or unknown for run in runs], dtype=np.float64)
        self.own_N = np.array([run.own for run in runs])
        self.stands_for_N = np.array([run.stands_for for run in runs], dtype=np.float64)
        self.sampled_N = np.array([run.sampled for run in runs])
        final_N = np.array([run.final for run in runs], dtype=np.float64)
        self.offset, self.slope = snapshot.metric_of_loss()
        loss = (snapshot.incumbent - self.offset) / self.slope
        self.unit = abs(loss) or 1.0  # the incumbent's loss; everything is relative to it
        self.incumbent = loss / self.unit
        self.final_N = (final_N - self.offset) / self.slope / self.unit
        self.blur = float(np.median([run.blur for run in runs])) / self.unit
        self.near_N = self._near()
        self._looks: dict[float, Look] = {}
        self._forecasts: dict[float, Regression] = {}

    def _near(self) -> Array:
        """Weigh completed runs by how near to the incumbent they ended."""
        distance_N = np.abs(self.final_N - self.incumbent)
        width = _NEAR
        while (weight_N := np.exp(-distance_N / width)).sum() < min(_ENOUGH, 0.6 * len(distance_N)) and width < 1:
            width *= 1.5
        return np.asarray(weight_N, dtype=np.float64)

    def look(self, fraction: float) -> Look:
        """Fit the tie at a fraction, once; the first call fits every planned check."""
        key = round(fraction, 4)
        if key not in self._looks:
            planned = () if self._looks else (round(f, 4) for f in self.snapshot.checks if FIRST_LOOK <= f < 1)
            self._fit_ties(sorted({key, *planned}))
        return self._looks[key]

    def _fit_ties(self, fractions: list[float]) -> None:
        fraction_L = np.array(fractions)
        now_LN = self._columns(fraction_L)
        past_PLN = [*(self._columns(fraction_L * share) - now_LN for share in PAST)]
        past_LNP = np.stack([*past_PLN, _RATE * self._at(self.rate_NC, fraction_L)], axis=2)
        known_LN = np.isfinite(now_LN)
        # Who was stopped is missing among the completed, so who is like it and was audited weighs as much as all of them.
        weight_LN = np.where(known_LN, self.near_N * self.stands_for_N, 0.0)
        now_LN = np.where(known_LN, now_LN, self.incumbent)
        seen_LNP = np.isfinite(past_LNP) * weight_LN[:, :, None]
        centre_LP = (seen_LNP * np.nan_to_num(past_LNP)).sum(axis=1) / np.maximum(seen_LNP.sum(axis=1), 1e-12)
        past_LNP = _features(past_LNP, centre_LP[:, None, :])
        s0_L = np.array([np.hypot(prior_scale(f), self._blur(f)) for f in fractions])
        one_LN1, gap_N1 = np.ones_like(now_LN)[:, :, None], (self.final_N - self.incumbent)[:, None]
        tie_LNP = np.concatenate([one_LN1, one_LN1 * gap_N1, past_LNP], axis=2)
        prior_sd_P = np.array([0.5, _TIE_SLOPE_SD, *[_PAST_SD] * len(PAST), _RATE_SD / _RATE])
        prior_LP = np.array([[0.0, _TIE_SLOPE, *_harvest(f), 1.0] for f in fractions])
        ties = fit_robust(tie_LNP, now_LN - self.incumbent, weight_LN, prior_LP, prior_sd_P, s0_L, _DOF0)
        for k, (fraction, tie) in enumerate(zip(fractions, ties, strict=True)):
            p_N = np.where(known_LN[k], np.clip(student_cdf(-tie.loo_z_N, tie.dof), 1e-12, 1 - 1e-12), 1 - 1e-12)
            self._looks[fraction] = Look(tie, centre_LP[k], past_LNP[k], float(s0_L[k]), p_N)

    def _fit_forecast(self, fraction: float, look: Look) -> Regression:
        now_N = self._columns(np.array([fraction]))[0]
        known_N = np.isfinite(now_N)
        ahead_N = np.clip(np.where(known_N, now_N - self.incumbent - look.tie.mean_P[0], 0.0), -_CLIP, 2 * _CLIP)
        forward_NP = np.column_stack([np.ones_like(now_N), ahead_N, look.past_NP])
        prior_sd_P = np.array([0.5, 0.3, *[_PAST_SD] * len(PAST), _RATE_SD / _RATE])
        prior_P = np.array([0.0, 0.8, *-_harvest(fraction), -1.0])
        gap_N, weight_N = self.final_N - self.incumbent, known_N.astype(np.float64)
        s0_L = np.array([look.s0])
        return fit(forward_NP[None], gap_N[None], weight_N[None], prior_P[None], prior_sd_P, s0_L, _DOF0)[0]

    def _blur(self, fraction: float) -> float:
        """Give the usual relative standard error of a level: reports come at an even pace, so it falls with the root."""
        return self.blur * float(np.sqrt(BLUR_AT / fraction))

    def _columns(self, fraction_K: Array) -> Array:
        """Interpolate every completed run's relative level at fractions: level_KN, NaN before its first report."""
        return self._at(self.level_NC, fraction_K) / self.unit

    @staticmethod
    def _at(value_NC: Array, fraction_K: Array) -> Array:
        """Interpolate every run's values on GRID at fractions: value_KN."""
        at_K = np.maximum(fraction_K * len(GRID) - 1, 0.0)
        low_K = np.minimum((at_K + 1e-9).astype(np.int64), len(GRID) - 1)
        high_K = np.minimum(low_K + 1, len(GRID) - 1)
        share_K1 = np.clip(at_K - low_K, 0.0, 1.0)[:, None]
        low_KN, high_KN = value_NC.T[low_K], value_NC.T[high_K]
        return np.asarray(np.where(share_K1 > 1e-6, (1 - share_K1) * low_KN + share_K1 * high_KN, low_KN))

    def stop_below(self, fraction: float) -> float:
        """Give the p_tie under which a run is stopped at a fraction. All checks together keep the promise of alpha."""
        return float(special.ndtr(-self.strictness * _patience(fraction)))

    @cached_property
    def strictness(self) -> float:
        """How many standard deviations, times patience, stop a run: at most alpha of runs that tie ever show as many.

        Calibrated on whole paths: each completed run that nothing selected is replayed as if it tied, and its worst left-out
        deviation over the planned checks is one draw; a prior worth a few runs stands in while draws are few.
        """
        own = float(self.near_N[self.own_N].sum() / self.near_N.sum())  # of what is known near the incumbent
        share = min(1.0, _USUAL_SHARE / self._improving_share()) ** (_CAUTION * own)
        alpha = 1.0 - (1.0 - self.snapshot.alpha) ** share  # near share · alpha, and still free up to 1
        checks = [f for f in self.snapshot.checks if FIRST_LOOK <= f < 1] or [0.5]
        weight_N = np.where(self.sampled_N, self.near_N, 0.0)
        worst_N = np.max([-special.ndtri(self.look(f).p_N) / _patience(f) for f in checks], axis=0)
        grid, prior = _prior_risk(tuple(checks))
        order = np.argsort(worst_N)
        beyond = weight_N.sum() - np.concatenate([[0.0], np.cumsum(weight_N[order])])
        seen = beyond[np.searchsorted(worst_N[order], grid, side="right")]
        risk = (_PRIOR_PATHS * prior + seen) / (_PRIOR_PATHS + weight_N.sum())
        enough = grid[risk <= alpha]
        return float(enough[0]) if len(enough) else float(grid[-1])

    def _improving_share(self) -> float:
        """Estimate how many of this campaign's whole runs improve. Who improves often has more to lose by stopping."""
        own = [run.final for run in self.snapshot.completed if run.own]
        best = np.minimum.accumulate(np.array(own) * (1 if self.snapshot.direction == "lower" else -1))
        improved = int((np.diff(best)[NEVER_JUDGED - 1 :] < 0).sum())
        return (improved + 1) / (max(len(own) - NEVER_JUDGED, 0) + 3)

    def outlook(self, curve: Curve, fraction: float) -> Outlook:
        """Judge a run by its curve so far. NaN fields when the curve is empty."""
        at = np.array([fraction, *(fraction * share for share in PAST)])
        level_1P, error_1P = levels_and_errors(curve.until(fraction), at)
        return self._outlook(level_1P, fraction, float(error_1P[0]), curve.rate(fraction))

    def p_tie(self, level_1P: Array, fraction: float, error: float = 0.0, rate: float = np.nan) -> float:
        """Give the probability that a run which ties looks this bad, from the levels now and at the shares PAST (nats).

        error is the standard error of the level now; what exceeds the usual widens the distribution. rate is the learning
        rate over its peak: who decays later than the completed runs did has more of its drop to come.
        """
        look = self.look(fraction)
        centre, scale = look.tie.predict(np.array([1.0, 0.0, *self._past(level_1P, rate, look)]))
        scale = float(np.hypot(scale, self._extra(error, fraction)))
        above = level_1P[0] / self.unit - self.incumbent - centre
        return float(student_cdf(-above / scale, look.tie.dof))

    def _past(self, level_1P: Array, rate: float, look: Look) -> Array:
        past_P = np.append((level_1P[1:] - level_1P[0]) / self.unit, _RATE * rate)
        return _features(past_P, look.centre_P)

    def _extra(self, error: float, fraction: float) -> float:
        return float(np.sqrt(max(0.0, (error / self.unit) ** 2 - self._blur(fraction) ** 2)))

    def _outlook(self, level_1P: Array, fraction: float, error: float, rate: float) -> Outlook:
        look = self.look(fraction)
        if fraction not in self._forecasts:
            self._forecasts[fraction] = self._fit_forecast(fraction, look)
        regression = self._forecasts[fraction]
        ahead = np.clip(level_1P[0] / self.unit - self.incumbent - look.tie.mean_P[0], -_CLIP, 2 * _CLIP)
        middle, spread = regression.predict(np.array([1.0, ahead, *self._past(level_1P, rate, look)]))
        spread = float(np.hypot(spread, self._extra(error, fraction)))
        reach = 1.64 * spread * (1 + 2 / regression.dof)  # a 90 % interval, Student-t to first order
        end, one, other = (
            self.offset + self.slope * self.unit * (self.incumbent + x)
            for x in (middle, middle - reach, middle + reach)
        )
        return Outlook(end, min(one, other), max(one, other), self.p_tie(level_1P, fraction, error, rate))


def _features(past_NP: Array, centre_P: Array) -> Array:
    known = np.isfinite(past_NP)
    return np.asarray(np.clip(np.where(known, past_NP - centre_P, 0.0), -_CLIP, _CLIP), dtype=np.float64)
