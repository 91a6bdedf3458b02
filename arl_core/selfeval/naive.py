"""The paper's self-evaluation: fit L(t) = a·t^−b + c to the losses so far and extrapolate to the end of the budget.

Kept as a rival and as a warning: before the learning-rate decay starts, the curve does not contain the drop that the
decay brings, so this kills the best run of most campaigns (docs/stopping.md).
"""

from __future__ import annotations

import numpy as np

from arl_core.selfeval.curve import Curve

_FIRST = 0.02  # warmup and the fall from the start do not follow the law
_EXPONENT_B = np.geomspace(0.05, 3.0, 25)
_MIN_POINTS = 4


def power_law(curve: Curve) -> float | None:
    """Forecast the loss at the end of the budget (fraction 1). None with fewer than four points after the start.

    Least squares in a and c for each exponent b of a grid; on held-out points where a run has them, else on training.
    """
    late = curve.fraction_N >= _FIRST
    held_out = late & curve.held_out_N
    use = held_out if held_out.any() else late
    if use.sum() < _MIN_POINTS:
        return None
    t_N, loss_N = curve.fraction_N[use], curve.loss_N[use]
    basis_BN = t_N[None, :] ** -_EXPONENT_B[:, None]
    centred_BN = basis_BN - basis_BN.mean(axis=1, keepdims=True)
    spread_B = np.maximum((centred_BN**2).sum(axis=1), 1e-12)
    a_B = np.maximum((centred_BN * (loss_N - loss_N.mean())).sum(axis=1) / spread_B, 0.0)  # a loss does not rise
    c_B = loss_N.mean() - a_B * basis_BN.mean(axis=1)
    error_B = ((loss_N[None, :] - a_B[:, None] * basis_BN - c_B[:, None]) ** 2).sum(axis=1)
    best = int(np.argmin(error_B))
    return float(a_B[best] + c_B[best])  # at t = 1 the power is 1
