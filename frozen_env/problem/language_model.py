"""The built-in problem: next-token prediction on text, measured in validation bits-per-byte.

Legend: B rows, T positions, V token ids.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from frozen_env.contract import Direction
from frozen_env.fetch import sha256_file
from frozen_env.problem.bits import bits_per_byte, nats_per_token
from frozen_env.problem.data import MANIFEST, PreparedData, TrainingOrder, load, prepared_folder
from frozen_env.spec import EnvironmentSpec

SCORED, PROBED = 0, 1
ROWS_PER_BATCH = 16
# How far a past log-probability may move when only the future changed: fp32 kernels differ in the last digits between
# batches, bf16 ones by more. A model that looks one token ahead moves it by whole nats.
TOLERANCE_NATS = {"cpu": 2e-3, "cuda": 0.25}


class LanguageModel:
    """Training rows and scoring of one prepared text. Raises DataMissing or ManifestError when it is not as pinned."""

    metric = "val_bpb"
    direction: Direction = "lower"

    def __init__(self, spec: EnvironmentSpec, data_dir: Path) -> None:
        self.spec = spec
        self.data: PreparedData = load(spec, data_dir)
        self.digest = sha256_file(prepared_folder(spec, data_dir) / MANIFEST)

    def training_rows(self, seed: int) -> TrainingOrder:
        return TrainingOrder(self.data.train_tokens, self.spec.seq_len, seed)

    def scoring_plan(self, seed: int) -> BitsPerByte:
        return BitsPerByte(self.spec, self.data, seed)


class BitsPerByte:
    """Two passes over held-out rows, each answered by a fresh worker: the rows themselves, and spliced ones.

    A spliced row keeps its past and takes another row's text as its future. It looks like any row, and a causal model
    answers its past as before.
    """

    def __init__(self, spec: EnvironmentSpec, data: PreparedData, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x5C0E])
        self.output_dim = spec.vocab_size
        self._token_bytes_V = data.token_bytes_V
        self._rows = np.asarray(data.held_out_BT1, dtype=np.int64)[rng.permutation(len(data.held_out_BT1))]
        inputs = self._rows[:, :-1]
        self._probed = rng.choice(len(inputs), spec.probe_rows, replace=False)
        self._cuts = rng.integers(inputs.shape[1] // 4, inputs.shape[1], spec.probe_rows)
        futures = (self._probed + rng.integers(1, max(2, len(inputs)), spec.probe_rows)) % len(inputs)
        spliced = inputs[self._probed].copy()
        for row, (cut, future) in enumerate(zip(self._cuts, futures, strict=True)):
            spliced[row, cut:] = inputs[future, cut:]
        self.passes = [_batches(inputs), *([_batches(spliced)] if spec.probe_rows else [])]
        self._tolerance_nats = TOLERANCE_NATS["cpu" if spec.device == "cpu" else "cuda"]
        if spec.device == "auto":
            import torch

            self._tolerance_nats = TOLERANCE_NATS["cuda" if torch.cuda.is_available() else "cpu"]
        self._nats = {SCORED: np.zeros(inputs.shape), PROBED: np.zeros(spliced.shape)}

    def take(self, pass_index: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        rows = slice(batch_index * ROWS_PER_BATCH, batch_index * ROWS_PER_BATCH + len(logits_BTV))
        # The past of a probe is compared on the original targets, so both passes are measured against those.
        targets = self._rows[rows] if pass_index == SCORED else self._rows[self._probed[rows]]
        nats_BT = nats_per_token(logits_BTV, targets[:, 1:])
        if not np.isfinite(nats_BT).all():
            return "logits are not finite"
        self._nats[pass_index][rows] = nats_BT
        return ""

    def _past_differences(self) -> np.ndarray:
        """Largest change per probe of a log-probability whose inputs are the same in both passes, in nats."""
        apart = np.abs(self._nats[PROBED] - self._nats[SCORED][self._probed])
        return np.array([row[:cut].max(initial=0.0) for row, cut in zip(apart, self._cuts, strict=True)])

    def lookahead(self) -> str:
        worst = self._past_differences().max(initial=0.0)
        if worst <= self._tolerance_nats:
            return ""
        return f"the logits of the past change with the future, by {worst:.3g} nats: the model is not causal or not deterministic"

    def result(self) -> dict[str, float]:
        scored_bytes = int(self._token_bytes_V[self._rows[:, 1:]].sum())
        value = bits_per_byte(float(self._nats[SCORED].sum()), scored_bytes)
        assert math.isfinite(value)
        return {
            "value": value,
            "held_out_tokens": self._nats[SCORED].size,
            "held_out_bytes": scored_bytes,
            "probe_max_diff": float(self._past_differences().max(initial=0.0)),
        }


def _batches(rows_BT: np.ndarray) -> list[np.ndarray]:
    return [rows_BT[start : start + ROWS_PER_BATCH] for start in range(0, len(rows_BT), ROWS_PER_BATCH)]
