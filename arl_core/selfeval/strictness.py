"""How bad a run must look before it is stopped: the level of the test, calibrated on the whole of what ran.

Shapes: N completed runs, M stopped ones, C columns of GRID, G levels of strictness.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from scipy import special

from arl_core.selfeval.curve import GRID
from arl_core.selfeval.forecast import FIRST_LOOK, Array, Forecaster

NEVER_JUDGED = 4  # the first runs of a campaign run whole: fewer teach nothing
_PATIENCE = 1.5  # a check at fraction f asks for 1 + 1.5·f times the evidence: late errors cost more than they save
_USUAL_SHARE = 0.25  # of completed runs that improve; more often, and a campaign is judged with a smaller alpha…
_CAUTION = 3.0  # …by this power of the excess, as far as only its own, worse runs have taught the drop
_PRIOR_PATHS = 10.0  # the prior on the worst deviation of a whole run is worth so many runs that tie
_EFFECTIVE_LOOKS = 4.0  # a priori a run's checks are taken for this many independent ones
_SURE = 1e-12  # probabilities are kept this far from 0 and 1
_ENDS = np.linspace(-2.5, 2.5, 41)  # standard deviations at which the forecast of a stopped run is read…
_ENDS_SHARE = np.exp(-(_ENDS**2) / 2) / np.exp(-(_ENDS**2) / 2).sum()  # …and how likely each is


def _patience(fraction: float) -> float:
    return 1.0 + _PATIENCE * fraction


@lru_cache(maxsize=8)
def _prior_risk(checks: tuple[float, ...]) -> tuple[Array, Array]:
    """Give levels of strictness, rising, and the prior probability that a run which ties is stopped under each."""
    grid_G = np.linspace(-4.0, 4.0, 801)  # below zero a run must look better than a tie: the frontier's bold end
    one_look_G = np.mean([special.ndtr(-grid_G * _patience(f)) for f in checks], axis=0)
    return grid_G, 1.0 - (1.0 - one_look_G) ** _EFFECTIVE_LOOKS


class TieTest(Forecaster):
    """A forecaster that knows when to stop."""

    def stop_below(self, fraction: float) -> float:
        """Give the p_tie under which a run is stopped at a fraction. All checks together keep the promise of alpha."""
        return float(special.ndtr(-self.strictness * _patience(fraction)))

    @cached_property
    def strictness(self) -> float:
        """How many standard deviations, times patience, stop a run: at most alpha of runs that tie ever show as many.

        Each run is replayed as if it tied, and its worst deviation over the planned checks is one draw; it counts by how near
        to the incumbent it ended. The completed ones alone would be a sample of those that looked good: a stopped run
        therefore counts too, by how near its forecast says that it would have ended, and shows at least what it was stopped
        for. A prior stands in while draws are few.
        """
        own = float(self.near_N[self.own_N].sum() / self.near_N.sum())  # of what is known near the incumbent
        share = min(1.0, _USUAL_SHARE / self._improving_share()) ** (_CAUTION * own)
        alpha = 1.0 - (1.0 - self.snapshot.alpha) ** share  # near share · alpha, and still free up to 1
        checks = [f for f in self.snapshot.checks if FIRST_LOOK <= f < 1] or [0.5]
        worst_N = np.max([_deviation(self.look(f).p_N, f) for f in checks], axis=0)
        weight_M, worst_M = self._stopped(checks)
        weight, worst = np.concatenate([self.near_N, weight_M]), np.concatenate([worst_N, worst_M])
        grid_G, prior_G = _prior_risk(tuple(checks))
        order = np.argsort(worst)
        beyond = weight.sum() - np.concatenate([[0.0], np.cumsum(weight[order])])
        seen_G = beyond[np.searchsorted(worst[order], grid_G, side="right")]
        risk_G = (_PRIOR_PATHS * prior_G + seen_G) / (_PRIOR_PATHS + weight.sum())
        enough = grid_G[risk_G <= alpha]
        return float(enough[0]) if len(enough) else float(grid_G[-1])

    def _stopped(self, checks: list[float]) -> tuple[Array, Array]:
        """Weigh the runs that were stopped and give their worst deviations from a tie until then, [M] each."""
        runs = self.snapshot.stopped
        level_MC, rate_MC = np.full((len(runs), len(GRID)), np.nan), np.full((len(runs), len(GRID)), np.nan)
        for m, run in enumerate(runs):
            level_MC[m, : len(run.levels)] = [np.nan if x is None else x for x in run.levels]
            rate_MC[m, : len(run.rates)] = run.rates
        until_M = np.array([run.until for run in runs])
        weight_M, worst_M = np.zeros(len(runs)), np.full(len(runs), -np.inf)
        for fraction in checks if runs else ():
            p_M, centre_M, scale_M = self.of_curves(level_MC, rate_MC, fraction)
            seen_M = (until_M >= fraction - 1e-6) & np.isfinite(p_M)
            near_M = np.exp(-np.abs(centre_M[:, None] + scale_M[:, None] * _ENDS) / self.width) @ _ENDS_SHARE
            weight_M = np.where(seen_M, near_M, weight_M)  # by the last check that it lived to see
            worst_M = np.where(seen_M, np.fmax(worst_M, _deviation(p_M, fraction)), worst_M)
        return weight_M, worst_M

    def _improving_share(self) -> float:
        """Estimate how many of this campaign's whole runs improve. Who improves often has more to lose by stopping."""
        own = [run.final for run in self.snapshot.completed if run.own]
        best = np.minimum.accumulate(np.array(own) * (1 if self.snapshot.direction == "lower" else -1))
        improved = int((np.diff(best)[NEVER_JUDGED - 1 :] < 0).sum())
        return (improved + 1) / (max(len(own) - NEVER_JUDGED, 0) + 3)


def _deviation(p_N: Array, fraction: float) -> Array:
    """Put tie probabilities as standard deviations over patience: what strictness is compared with."""
    return np.asarray(-special.ndtri(np.clip(p_N, _SURE, 1 - _SURE)) / _patience(fraction))
