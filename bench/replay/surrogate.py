"""The judge: a success classifier and a val_bpb regressor fitted on recorded trials, with the recorded noise.

Legend of shapes: N trials, F features. Boosted trees (scikit-learn) on the constants' natural scales; one model per group of
trials left out, averaged, so that the answer is smoother than a single model's and the grouped validation comes for free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score

from bench.replay.space import Constant, Space

Array = NDArray[np.float64]

KINDS: dict[str, Any] = {
    "DEPTH": "integer",
    "ASPECT_RATIO": "integer",
    "HEAD_DIM": "choice",
    "DEVICE_BATCH_SIZE": "choice",
    "TOTAL_BATCH_SIZE": "choice",
    "EMBEDDING_LR": "log",
    "UNEMBEDDING_LR": "log",
    "MATRIX_LR": "log",
    "SCALAR_LR": "log",
    "WEIGHT_DECAY": "linear",
    "WARMUP_RATIO": "linear",
    "WARMDOWN_RATIO": "linear",
    "FINAL_LR_FRAC": "linear",
    "WINDOW_PATTERN": "choice",
}
FLOOR_BPB = 0.95  # below every recorded value: the regressor works on log(val_bpb - FLOOR_BPB)
NOISE_BPB = (
    0.0005  # standard deviation; no less than the median of settings that were tried five times or more (0.0002)
)
NOISE_MIN_REPEATS = 5
NEAR_BPB = 0.985
TREES = 400
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Answer:
    """What one simulated trial gives: `true_bpb` is known to the judge alone; None for both where the trial failed."""

    true_bpb: float | None
    seen_bpb: float | None
    wall_s: float


@dataclass(frozen=True)
class Quality:
    """How good the judge is on groups of trials that it was not fitted on."""

    trials: int
    groups: int
    success_auc: float
    success_accuracy: float
    bpb_mean_abs_error: float
    bpb_rank_correlation: float
    near_trials: int  # of those recorded below NEAR_BPB, where arms compete in the end
    near_bpb_mean_abs_error: float
    near_bpb_rank_correlation: float
    noise_bpb: float  # measured on the file


class Surrogate:
    """Fitted on the trials of one file. Deterministic: the same file gives the same judge."""

    def __init__(self, trials: Path) -> None:
        self.digest = hashlib.sha256(trials.read_bytes()).hexdigest()
        names = list(KINDS)
        columns = ", ".join([*names, "method", "val_bpb", "success", "wall_s"])
        table = duckdb.sql(f"select {columns} from '{trials}' order by method, seed, trial").fetchnumpy()
        rows = [{name: table[name][i] for name in names} for i in range(len(table["success"]))]
        self.space = Space(tuple(_constant(name, table[name]) for name in names))
        self._success_N = np.asarray(table["success"], dtype=bool)
        self._bpb_N: np.ndarray = np.ma.filled(np.ma.asarray(table["val_bpb"], dtype=float), np.nan)
        self._group_N = np.asarray(table["method"]).astype(str)
        self._features_NF = np.array([features(row) for row in rows])
        wall_N = np.asarray(table["wall_s"], dtype=float)
        self.trained_wall_s = float(np.median(wall_N[self._success_N]))
        self.failed_wall_s = float(np.median(wall_N[~self._success_N]))
        self._fit()
        self.quality = self._measure(rows)

    def true_value(self, setting: Mapping[str, Any]) -> float | None:
        """Return val_bpb without noise, None where the trial would fail (out of memory, mostly)."""
        x_1F = np.array([features(setting)])
        if float(np.mean([model.predict_proba(x_1F)[0, 1] for model in self._classifiers])) < 0.5:
            return None
        return float(np.mean([_bpb(model.predict(x_1F))[0] for model in self._regressors]))

    def answer(self, setting: Mapping[str, Any], rng: np.random.Generator) -> Answer:
        """Simulate one trial: noise of the recorded size, recorded wall time of a success or a failure."""
        value = self.true_value(setting)
        if value is None:
            return Answer(None, None, self.failed_wall_s)
        return Answer(value, value + NOISE_BPB * float(rng.normal()), self.trained_wall_s)

    def _fit(self) -> None:
        self._groups = sorted(set(self._group_N))
        self._classifiers, self._regressors = [], []
        for group in self._groups:
            kept_N = self._group_N != group
            classifier = HistGradientBoostingClassifier(
                max_iter=TREES // 2, learning_rate=LEARNING_RATE, random_state=0
            )
            self._classifiers.append(classifier.fit(self._features_NF[kept_N], self._success_N[kept_N]))
            kept_N = kept_N & self._success_N
            regressor = HistGradientBoostingRegressor(
                max_iter=TREES, learning_rate=LEARNING_RATE, l2_regularization=1e-3, random_state=0
            )
            self._regressors.append(regressor.fit(self._features_NF[kept_N], np.log(self._bpb_N[kept_N] - FLOOR_BPB)))

    def _measure(self, rows: list[dict[str, Any]]) -> Quality:
        chance_N, bpb_N = np.empty(len(rows)), np.empty(len(rows))
        for group, classifier, regressor in zip(self._groups, self._classifiers, self._regressors, strict=True):
            out_N = self._group_N == group
            chance_N[out_N] = classifier.predict_proba(self._features_NF[out_N])[:, 1]
            bpb_N[out_N] = _bpb(regressor.predict(self._features_NF[out_N]))
        ok_N = self._success_N
        near_N = ok_N & (self._bpb_N < NEAR_BPB)
        return Quality(
            trials=len(rows),
            groups=len(self._groups),
            success_auc=float(roc_auc_score(ok_N, chance_N)),
            success_accuracy=float(np.mean((chance_N > 0.5) == ok_N)),
            bpb_mean_abs_error=float(np.mean(np.abs(bpb_N - self._bpb_N)[ok_N])),
            bpb_rank_correlation=_rank_correlation(bpb_N[ok_N], self._bpb_N[ok_N]),
            near_trials=int(near_N.sum()),
            near_bpb_mean_abs_error=float(np.mean(np.abs(bpb_N - self._bpb_N)[near_N])),
            near_bpb_rank_correlation=_rank_correlation(bpb_N[near_N], self._bpb_N[near_N]),
            noise_bpb=self._noise(rows),
        )

    def _noise(self, rows: list[dict[str, Any]]) -> float:
        repeats: dict[tuple[Any, ...], list[float]] = {}
        for row, ok, value in zip(rows, self._success_N, self._bpb_N, strict=True):
            if ok:
                repeats.setdefault(tuple(row.values()), []).append(float(value))
        deviations = [np.std(v, ddof=1) for v in repeats.values() if len(v) >= NOISE_MIN_REPEATS]
        return float(np.median(deviations)) if deviations else float("nan")


def features(setting: Mapping[str, Any]) -> list[float]:
    """Return a setting as numbers, [F]: each constant on its natural scale, then width, size and activations (logs)."""
    values = [_number(name, kind, setting[name]) for name, kind in KINDS.items() if name != "WINDOW_PATTERN"]
    values += [float(letter == "L") for letter in setting["WINDOW_PATTERN"]]
    width = setting["DEPTH"] * setting["ASPECT_RATIO"]
    sizes = (width, setting["DEPTH"] * width**2, setting["DEPTH"] * width * setting["DEVICE_BATCH_SIZE"])
    return values + [float(np.log(float(size))) for size in sizes]


def _number(name: str, kind: str, value: Any) -> float:
    return float(np.log(value)) if kind == "log" or name.endswith("_SIZE") else float(value)


def _bpb(log_excess_N: Array) -> Array:
    return np.exp(log_excess_N) + FLOOR_BPB


def _constant(name: str, column: Any) -> Constant:
    kind = KINDS[name]
    if kind == "choice":
        values = {str(v) if name == "WINDOW_PATTERN" else int(v) for v in column}
        return Constant(name, kind, choices=tuple(sorted(values)))
    return Constant(name, kind, low=float(min(column)), high=float(max(column)))


def _rank_correlation(a_N: Array, b_N: Array) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a_N, b_N).statistic)
