"""The critic: what has come of edits like this one? It chooses which of several sampled edits is worth an experiment.

A Bayesian linear model on frozen features of the policy itself: the hidden states of one early layer, averaged over the
edit's tokens, with the adapter off, so that an edit's features never change. A few hundred rewards are far too few for a
policy gradient to learn which constants matter; this model learns it from them. It sees the policy's own words and the
rewards of its own experiments, nothing else.

Legend of shapes: N remembered edits, C candidates, D width of the hidden state.

Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, sections 2.1 (the weight-space view) and 5.4.1
(evidence); the choice by a posterior draw is Thompson sampling (Thompson 1933).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST = 16  # edits before the critic has an opinion
MOST = 512  # edits remembered; older ones belong to another state of the file
NOISE_SHARES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # noise variance over signal variance, chosen by the evidence
SPREAD_FLOOR = 1e-3  # a feature that hardly varies is not blown up


@dataclass
class Critic:
    """Edits remembered: their features [N, D] and rewards [N], oldest first."""

    features: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def learn(self, features: Sequence[NDArray[np.float32]], rewards: Sequence[float]) -> None:
        """Remember what came of edits. Rewards are finite, one per edit."""
        self.features = [*self.features, *features][-MOST:]
        self.rewards = [*self.rewards, *map(float, rewards)][-MOST:]

    @property
    def ready(self) -> bool:
        return len(self.rewards) >= LEAST and float(np.ptp(self.rewards)) > 0

    def draw(self, candidates_CD: NDArray[np.float32], seed: int) -> Array:
        """Return one draw from the posterior of the candidates' expected rewards, [C]; zeros before it is ready."""
        if not self.ready:
            return np.zeros(len(candidates_CD))
        mean_C, covariance_CC = self.predict(candidates_CD)
        rng = np.random.default_rng(seed)
        values, vectors = np.linalg.eigh(covariance_CC)
        draw_C: Array = mean_C + vectors @ (np.sqrt(np.maximum(values, 0.0)) * rng.standard_normal(len(mean_C)))
        return draw_C

    def predict(self, candidates_CD: NDArray[np.float32]) -> tuple[Array, Array]:
        """Return mean [C] and covariance [C, C] of the candidates' expected rewards. ValueError before it is ready."""
        if not self.ready:
            raise ValueError(f"the critic needs {LEAST} different rewards, it has {len(self.rewards)}")
        known_ND = np.array(self.features, dtype=np.float64)
        centre_D, spread_D = known_ND.mean(axis=0), known_ND.std(axis=0) + SPREAD_FLOOR
        known_ND = (known_ND - centre_D) / spread_D
        new_CD = (np.asarray(candidates_CD, dtype=np.float64) - centre_D) / spread_D
        width = known_ND.shape[1]
        rewards_N = np.array(self.rewards)
        mean = float(rewards_N.mean())
        values_N, vectors_NN = np.linalg.eigh(known_ND @ known_ND.T / width)
        values_N = np.maximum(values_N, 0.0)
        turned_N = vectors_NN.T @ (rewards_N - mean)
        signal, noise = _evidence(values_N, turned_N)
        across_CN = (new_CD @ known_ND.T / width) @ vectors_NN
        weights_N = signal / (signal * values_N + noise)
        covariance_CC = signal * (new_CD @ new_CD.T / width - (across_CN * weights_N) @ across_CN.T)
        return mean + across_CN @ (weights_N * turned_N), (covariance_CC + covariance_CC.T) / 2

    # --- keeping ------------------------------------------------------------------------------------------------------

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        if not self.rewards:
            return {}
        return {"features": np.array(self.features, dtype=np.float32), "rewards": np.array(self.rewards)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Critic:
        if not arrays:
            return cls()
        return cls(list(np.asarray(arrays["features"], dtype=np.float32)), [float(r) for r in arrays["rewards"]])


def _evidence(values_N: Array, turned_N: Array) -> tuple[float, float]:
    """Return the variances (signal, noise) under which the rewards are likeliest, given the kernel's eigenvalues [N] and
    the centred rewards in its eigenvectors [N]. For each share the best scale has a closed form."""

    def best_scale(share: float) -> float:
        return float(np.mean(turned_N**2 / (values_N + share)))

    def minus_log(share: float) -> float:
        return float(len(values_N) * np.log(best_scale(share)) + np.log(values_N + share).sum())

    share = min(NOISE_SHARES, key=minus_log)
    return best_scale(share), share * best_scale(share)
