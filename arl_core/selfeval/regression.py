"""Bayesian linear regression with weights: conjugate prior, Student-t predictions, leave-one-out residuals.

Shapes: N observations, P coefficients. Source: Bishop, Pattern Recognition and Machine Learning, section 3.3, with the
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

    @classmethod
    def fit_robust(
        cls, x_NP: Array, y_N: Array, weight_N: Array, prior_mean_P: Array, prior_sd_P: Array, s0: float, dof0: float
    ) -> Regression:
        """Fit as `fit` does, under noise with Student's t of four degrees of freedom: an odd run counts less.

        Iteratively reweighted (Lange, Little and Taylor 1989, equation 5): a residual of r scales weighs 5/(4 + r²).
        """
        fitted = cls.fit(x_NP, y_N, weight_N, prior_mean_P, prior_sd_P, s0, dof0)
        for _ in range(_ROUNDS):
            miss_N = (y_N - x_NP @ fitted.mean_P) / fitted.s
            robust_N = np.minimum(1.0, (_NOISE_DOF + 1) / (_NOISE_DOF + miss_N**2))
            fitted = cls.fit(x_NP, y_N, weight_N * robust_N, prior_mean_P, prior_sd_P, s0, dof0)
        return fitted

    @classmethod
    def fit(
        cls, x_NP: Array, y_N: Array, weight_N: Array, prior_mean_P: Array, prior_sd_P: Array, s0: float, dof0: float
    ) -> Regression:
        """Fit y = x·β + noise; a priori β is prior_mean_P ± prior_sd_P and the noise s0, worth dof0 observations."""
        precision_P = (s0 / prior_sd_P) ** 2
        weighted_NP = x_NP * weight_N[:, None]
        cov_PP = np.linalg.inv(weighted_NP.T @ x_NP + np.diag(precision_P))
        mean_P = cov_PP @ (weighted_NP.T @ y_N + precision_P * prior_mean_P)
        miss_N = y_N - x_NP @ mean_P
        count = float(weight_N.sum())
        shift_P = mean_P - prior_mean_P
        ss = float((weight_N * miss_N**2).sum() + (precision_P * shift_P**2).sum())
        s = float(np.sqrt((dof0 * s0**2 + ss) / (dof0 + count)))
        lever_N = np.minimum(weight_N * np.einsum("np,pq,nq->n", x_NP, cov_PP, x_NP), 0.99)
        # Left out, the residual grows by 1/(1-h) and its predictive variance is s²/(1-h) when the weight is 1.
        loo_z_N = miss_N / (s * np.sqrt(1 - lever_N))
        return cls(mean_P, np.asarray(cov_PP, dtype=np.float64), s, dof0 + count, np.asarray(loo_z_N, dtype=np.float64))

    def predict(self, x_P: Array) -> tuple[float, float]:
        """Give centre and scale of the Student-t prediction at x_P."""
        return float(x_P @ self.mean_P), float(self.s * np.sqrt(1 + x_P @ self.cov_PP @ x_P))
