"""Bayesian linear regression with weights: conjugate prior, Student-t predictions, leave-one-out residuals.

Shapes: L regressions at once (one per check), N observations, P coefficients.
Source: Bishop, Pattern Recognition and Machine Learning, section 3.3, with the
normal-inverse-gamma prior of its exercise 3.12.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

_ROUNDS, _NOISE_DOF = 2, 4.0  # of the robust fit


def student_cdf(x: Array | float, dof: float) -> Array:
    """Evaluate Student's t distribution function (scipy.special: no per-call overhead of scipy.stats)."""
    return np.asarray(special.stdtr(dof, x), dtype=np.float64)


@dataclass(frozen=True)
class Regression:
    """A fitted posterior. A prediction at x is Student-t: `dof`, centre x·mean, squared scale s²·(1 + xᵀ cov x)."""

    mean_P: Array
    cov_PP: Array  # of the coefficients, in units of s²
    s: float  # residual scale
    dof: float
    loo_z_N: Array  # leave-one-out standardised residuals of the observations

    def predict(self, x_P: Array) -> tuple[float, float]:
        """Give centre and scale of the Student-t prediction at x_P."""
        return float(x_P @ self.mean_P), float(self.s * np.sqrt(1 + x_P @ self.cov_PP @ x_P))


def fit(
    x_LNP: Array, y_LN: Array, weight_LN: Array, prior_mean_LP: Array, prior_sd_P: Array, s0_L: Array, dof0: float
) -> list[Regression]:
    """Fit y = x·β + noise, L regressions at once; a priori β is prior_mean ± prior_sd and the noise s0, worth dof0 runs."""
    precision_LP = (s0_L[:, None] / prior_sd_P) ** 2
    weighted_LPN = np.swapaxes(x_LNP * weight_LN[:, :, None], 1, 2)
    gram_LPP = weighted_LPN @ x_LNP + precision_LP[:, :, None] * np.eye(len(prior_sd_P))
    cov_LPP = np.linalg.inv(gram_LPP)
    pull_LP = (weighted_LPN @ y_LN[:, :, None])[:, :, 0] + precision_LP * prior_mean_LP
    mean_LP = (cov_LPP @ pull_LP[:, :, None])[:, :, 0]
    miss_LN = y_LN - (x_LNP @ mean_LP[:, :, None])[:, :, 0]
    dof_L = dof0 + weight_LN.sum(axis=1)
    ss_L = (weight_LN * miss_LN**2).sum(axis=1) + (precision_LP * (mean_LP - prior_mean_LP) ** 2).sum(axis=1)
    s_L = np.sqrt((dof0 * s0_L**2 + ss_L) / dof_L)
    lever_LN = np.minimum(weight_LN * ((x_LNP @ cov_LPP) * x_LNP).sum(axis=2), 0.99)
    # Left out, the residual grows by 1/(1-h) and its predictive variance is s²/(1-h) when the weight is 1.
    loo_LN = miss_LN / (s_L[:, None] * np.sqrt(1 - lever_LN))
    return [Regression(mean_LP[k], cov_LPP[k], float(s_L[k]), float(dof_L[k]), loo_LN[k]) for k in range(len(mean_LP))]


def fit_robust(
    x_LNP: Array, y_LN: Array, weight_LN: Array, prior_mean_LP: Array, prior_sd_P: Array, s0_L: Array, dof0: float
) -> list[Regression]:
    """Fit as `fit` does, under noise with Student's t of four degrees of freedom: an odd run counts less.

    Iteratively reweighted (Lange, Little and Taylor 1989): a residual of r scales weighs 5/(4 + r²), at most 1.
    """
    fitted = fit(x_LNP, y_LN, weight_LN, prior_mean_LP, prior_sd_P, s0_L, dof0)
    for _ in range(_ROUNDS):
        mean_LP, s_L = np.array([one.mean_P for one in fitted]), np.array([one.s for one in fitted])
        miss_LN = (y_LN - (x_LNP @ mean_LP[:, :, None])[:, :, 0]) / s_L[:, None]
        robust_LN = np.minimum(1.0, (_NOISE_DOF + 1) / (_NOISE_DOF + miss_LN**2))
        fitted = fit(x_LNP, y_LN, weight_LN * robust_LN, prior_mean_LP, prior_sd_P, s0_L, dof0)
    return fitted
