"""A run's losses over elapsed fraction, and its level: what the loss is *now*, freed of noise and of stale points.

Shapes: N points of one curve, K fractions asked for, P = 3 parameters of the local fit.
Everything is relative to the loss itself, so that multiplying every loss by a constant multiplies every level by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frozen_env.contract import Report

Array = NDArray[np.float64]

GRID_SIZE = 40  # a completed run is kept as its levels at 1/40, 2/40 … 1 of the budget
GRID = np.arange(1, GRID_SIZE + 1) / GRID_SIZE

_BINS = 160  # dense curves are averaged in bins of equal width in log fraction, 3.5 % each
_FIRST = 0.004  # before this fraction nothing is remembered: the loss is still falling from its start
_BANDWIDTH = 0.35  # of the local fit, in log fraction: at half of the run, points since a third of it count
_SLOPE_MEAN, _SLOPE_SD = -0.06, 0.05  # prior slope of the loss per unit of log fraction, relative to the loss
_OFFSET_SD = 0.01  # prior difference between training and held-out loss, relative
_HELD_OUT_NOISE = 0.0015  # relative noise of one held-out point
_HUBER = 2.0  # residuals beyond so many standard deviations are spikes and count less
# Losses are what a candidate says: zero, say, or 2 and then next to nothing. What is relative to the loss is relative to
# no less than this, or the fit would divide by zero. Far below any loss that was measured.
_LEAST_SHARE, _LEAST = 1e-8, 1e-6  # of the largest loss of the curve; and in its own units
_MOST = 1e100  # beyond it squares overflow, and a curve cannot be read


@dataclass(frozen=True)
class Curve:
    """Losses of one run. fraction_N rises in (0, 1]; held_out_N marks held-out losses, the rest are training losses.

    rate_C is the learning rate over its peak so far at each fraction of GRID; None when the run does not report one.
    """

    fraction_N: Array
    loss_N: Array
    held_out_N: NDArray[np.bool_]
    rate_C: Array | None = None

    @classmethod
    def from_reports(cls, reports: Sequence[Report]) -> Curve:
        """Take the training losses that a candidate reported. No report gives an empty curve."""
        points = np.array([(r.fraction, r.loss) for r in reports], dtype=np.float64).reshape(-1, 2)
        curve = cls.from_points(points[:, 0], points[:, 1], np.zeros(len(points), dtype=bool))
        return replace(curve, rate_C=_rate(reports))

    @classmethod
    def from_points(cls, fraction_N: Array, loss_N: Array, held_out_N: NDArray[np.bool_]) -> Curve:
        """Sort by fraction and bin training losses when they are dense. Non-finite losses are dropped here."""
        keep = np.isfinite(loss_N) & (fraction_N >= _FIRST)
        fraction_N, loss_N, held_out_N = fraction_N[keep], loss_N[keep], held_out_N[keep]
        train = ~held_out_N
        if train.sum() > _BINS:
            where = np.floor(np.log(fraction_N[train] / _FIRST) * (_BINS / -np.log(_FIRST))).astype(np.int64)
            count = np.bincount(where)
            used = count > 0
            bin_fraction = np.bincount(where, fraction_N[train])[used] / count[used]
            bin_loss = np.bincount(where, loss_N[train])[used] / count[used]
            fraction_N = np.concatenate([bin_fraction, fraction_N[held_out_N]])
            loss_N = np.concatenate([bin_loss, loss_N[held_out_N]])
            held_out_N = np.arange(len(fraction_N)) >= used.sum()
        order = np.argsort(fraction_N, kind="stable")
        return cls(fraction_N[order], loss_N[order], held_out_N[order])

    def until(self, fraction: float) -> Curve:
        """Keep what had been seen at an elapsed fraction."""
        seen = self.fraction_N <= fraction + 1e-9
        return Curve(self.fraction_N[seen], self.loss_N[seen], self.held_out_N[seen], self.rate_C)

    def rate(self, fraction: float) -> float:
        """Give the learning rate over its peak so far, NaN when unknown."""
        return float("nan") if self.rate_C is None else float(np.interp(fraction, GRID, self.rate_C))


def thin(reports: Sequence[Report], most: int) -> list[Report]:
    """Return at most `most` reports, evenly spaced, the first and the last among them."""
    if len(reports) <= most:
        return list(reports)
    return [reports[round(i * (len(reports) - 1) / (most - 1))] for i in range(most)]


def _rate(reports: Sequence[Report]) -> Array | None:
    """Resample the reported learning rate, relative to its peak so far, on GRID. None without a positive rate."""
    known = np.array([(r.fraction, r.lr) for r in reports if r.lr is not None], dtype=np.float64).reshape(-1, 2)
    known = known[np.isfinite(known).all(axis=1)]
    if len(known) == 0 or known[:, 1].max() <= 0:
        return None
    peak_N = np.maximum.accumulate(known[:, 1])
    last_C = np.maximum(np.searchsorted(known[:, 0], GRID + 1e-9, side="right") - 1, 0)
    share_N = known[:, 1] / np.where(peak_N > 0, peak_N, 1.0)
    return np.asarray(np.clip(share_N[last_C], 0.0, 1.0), dtype=np.float64)


def levels(curve: Curve, at_K: Array) -> Array:
    """Estimate the loss at each fraction of at_K from the points seen by then. Returns level_K, NaN without points."""
    return levels_and_errors(curve, at_K)[0]


def levels_and_errors(curve: Curve, at_K: Array) -> tuple[Array, Array]:
    """Estimate levels and their standard errors: (level_K, error_K), NaN where no point had been seen, or none can be read.

    A local linear fit in log fraction: held-out points weigh by their small noise, training points by theirs, and an
    offset between the two is fitted, so that training losses fill the time since the last held-out point.
    """
    at_K = np.asarray(at_K, dtype=np.float64)
    level_K, error_K = np.full(len(at_K), np.nan), np.full(len(at_K), np.nan)
    if len(curve.loss_N) == 0:
        return level_K, error_K
    log_t_N = np.log(curve.fraction_N)
    most = float(np.abs(curve.loss_N).max())
    if most > _MOST:
        return level_K, error_K
    least = max(_LEAST_SHARE * most, _LEAST)
    noise_N = _noise(curve, least)
    for k, at in enumerate(at_K):
        n = int(np.searchsorted(curve.fraction_N, at + 1e-9, side="right"))
        if n:
            seen = log_t_N[:n] - np.log(at), curve.loss_N[:n], curve.held_out_N[:n], noise_N[:n]
            level_K[k], error_K[k] = _local_fit(*seen, least)
    return level_K, error_K


def _noise(curve: Curve, least: float) -> Array:
    """Give each point's standard deviation: training noise from successive differences, held-out noise is small."""
    scale = max(float(np.median(np.abs(curve.loss_N))), least)
    train = curve.loss_N[~curve.held_out_N]
    spread = float(np.median(np.abs(np.diff(train)))) * 1.05 if len(train) > 4 else 0.03 * scale
    return np.where(curve.held_out_N, _HELD_OUT_NOISE * scale, max(spread, _HELD_OUT_NOISE * scale))


def _local_fit(
    x_N: Array, loss_N: Array, held_out_N: NDArray[np.bool_], noise_N: Array, least: float
) -> tuple[float, float]:
    """Fit level + slope·x + offset·[training] around x = 0 with weak priors; two Huber rounds tame spikes."""
    near_N = np.exp(-0.5 * np.square(x_N / _BANDWIDTH)) + 1e-9  # a lone old point still says something
    scale = max(abs(float(np.average(loss_N, weights=near_N))), least)
    weight_N = near_N / np.square(noise_N)
    design_NP = np.stack([np.ones_like(x_N), x_N, (~held_out_N).astype(np.float64)], axis=1)
    offset_sd = _OFFSET_SD if held_out_N.any() else 1e-6  # nothing to compare with: the level is the training loss
    prior_P = np.array([0.0, 1 / (_SLOPE_SD * scale) ** 2, 1 / (offset_sd * scale) ** 2])
    mean_P = np.array([0.0, _SLOPE_MEAN * scale, 0.0])
    fit_P: Array = mean_P
    cov_PP: Array = np.eye(3)
    robust_N = np.ones_like(x_N)
    for _ in range(2):
        weighted_NP = design_NP * (weight_N * robust_N)[:, None]
        cov_PP = np.asarray(np.linalg.inv(weighted_NP.T @ design_NP + np.diag(prior_P)), dtype=np.float64)
        fit_P = np.asarray(cov_PP @ (weighted_NP.T @ loss_N + prior_P * mean_P), dtype=np.float64)
        miss_N = np.abs(loss_N - design_NP @ fit_P) / noise_N
        robust_N = np.minimum(1.0, _HUBER / np.maximum(miss_N, 1e-12))
    return float(fit_P[0]), float(np.sqrt(cov_PP[0, 0]))
