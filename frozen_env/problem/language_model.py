"""The built-in problem: next-token prediction on text, measured in validation bits-per-byte.

Legend: B rows, T positions, V token ids.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from frozen_env.contract import Cause, Direction
from frozen_env.fetch import sha256_file
from frozen_env.problem.bits import bits_per_byte, nats_per_token
from frozen_env.problem.data import MANIFEST, PreparedData, TrainingOrder, load, prepared_folder
from frozen_env.spec import EnvironmentSpec

SCORED, PROBED = 0, 1
ROWS_PER_BATCH = 16
LOGITS_BYTES_PER_BATCH = 64 << 20  # of float32: whole logits of the held-out text would be tens of gigabytes
SPLICE_TOKENS = 2_000_000  # of the validation text, from which futures are taken
# How far a past log-probability may move when only the future changed: fp32 kernels differ in the last digits between
# batches, bf16 ones by more. A model that looks one token ahead moves it by whole nats.
TOLERANCE_NATS = {"cpu": 2e-3, "cuda": 0.25}
# Rounding goes either way, a future that was exchanged makes a past that knew it worse: so much, on average, just before the
# cuts, and over all of the pasts. Where the tolerance is wide, a little look-ahead at every position stays under it. For 64
# probes or more; fewer are allowed more, as chance is. Like 0.25 these are estimates: they were not calibrated on a GPU.
LEAN_NATS, LEAN_OF_PASTS_NATS, LEAN_PROBES = 0.02, 0.005, 64


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

    def scoring_plan(self, seed: int, device: str, secret: int) -> BitsPerByte:
        return BitsPerByte(self.spec, self.data, seed, secret, TOLERANCE_NATS[device])


class BitsPerByte:
    """Two passes over held-out rows, each answered by a fresh worker: the rows themselves, and spliced ones.

    A spliced row keeps its past and takes other held-out text as its future. It looks like any row, and a causal model
    answers its past as before. Cuts lie anywhere in a row; the future begins with another token than the true one.

    `seed` is the run's and fixes the order of the rows, so that a value is the same when it is measured again. A candidate
    knows it: which rows are probed, where, and with what future follows from `secret` alone, drawn for each scoring.
    """

    def __init__(
        self, spec: EnvironmentSpec, data: PreparedData, seed: int, secret: int, tolerance_nats: float
    ) -> None:
        order = np.random.default_rng([seed, 0x5C0E]).permutation(len(data.held_out_BT1))
        rng = np.random.default_rng(secret)
        self.output_dim = spec.vocab_size
        self._token_bytes_V = data.token_bytes_V
        self._rows = np.asarray(data.held_out_BT1, dtype=np.int64)[order]
        self._tolerance_nats = tolerance_nats
        self._threads = spec.threads
        inputs = self._rows[:, :-1]
        self._probed = rng.choice(len(inputs), spec.probe_rows, replace=False)
        self._cuts = rng.integers(1, inputs.shape[1], spec.probe_rows)
        originals = inputs[self._probed]
        spliced = originals.copy()
        text = np.asarray(data.validation_tokens[:SPLICE_TOKENS], dtype=np.int64)
        for row, cut in enumerate(self._cuts):
            spliced[row, cut:] = natural_future(text, spliced[row], int(cut), rng)
        self._rows_at_once = rows_at_once(inputs.shape[1], spec.vocab_size)
        self.passes = [self._batches(inputs), *([self._batches(spliced)] if spec.probe_rows else [])]
        self.repeated = self._batches(originals)
        self._nats = {SCORED: np.zeros(inputs.shape), PROBED: np.zeros(spliced.shape)}
        self._repeated_nats = np.zeros((2, *originals.shape))

    def take(self, pass_index: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        # The past of a probe is compared on the original targets, so both passes are measured against those.
        targets = self._rows if pass_index == SCORED else self._rows[self._probed]
        return self._measure(self._nats[pass_index], targets, batch_index, logits_BTV)

    def take_repeated(self, attempt: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        targets = self._rows[self._probed]
        return self._measure(self._repeated_nats[attempt], targets, batch_index, logits_BTV)

    def _measure(self, nats_BT: np.ndarray, targets_BT1: np.ndarray, batch_index: int, logits_BTV: np.ndarray) -> str:
        """Write a batch's nats to its place. Return what is wrong with it, or ''."""
        start = batch_index * self._rows_at_once
        rows = slice(start, start + len(logits_BTV))
        found_BT = nats_per_token(logits_BTV, targets_BT1[rows, 1:], self._threads)
        if not np.isfinite(found_BT).all():
            return "logits are not finite"
        nats_BT[rows] = found_BT
        return ""

    def _batches(self, rows_BT: np.ndarray) -> list[np.ndarray]:
        step = self._rows_at_once
        return [rows_BT[start : start + step] for start in range(0, len(rows_BT), step)]

    def _past_differences(self) -> np.ndarray:
        """Largest change per probe of a log-probability whose inputs are the same in both passes, in nats."""
        apart = np.abs(self._nats[PROBED] - self._nats[SCORED][self._probed])
        return np.array([row[:cut].max(initial=0.0) for row, cut in zip(apart, self._cuts, strict=True)])

    def _leans(self, first_BT: np.ndarray, later_BT: np.ndarray) -> bool:
        """Say whether later answers to the pasts are worse than the first, by more than rounding makes them on average."""
        worse_BT = later_BT - first_BT
        at_cuts = [row[cut - 1] for row, cut in zip(worse_BT, self._cuts, strict=True)]
        pasts = [row[:cut] for row, cut in zip(worse_BT, self._cuts, strict=True)]
        if not pasts:
            return False
        few = max(1.0, math.sqrt(LEAN_PROBES / len(pasts)))
        return bool(np.mean(at_cuts) > few * LEAN_NATS or np.concatenate(pasts).mean() > few * LEAN_OF_PASTS_NATS)

    def differs(self) -> bool:
        far = self._past_differences().max(initial=0.0) > self._tolerance_nats
        return bool(far) or self._leans(self._nats[SCORED][self._probed], self._nats[PROBED])

    def explain(self) -> tuple[Cause, str]:
        """Two fresh workers got the probed rows alone, unspliced: what differs between them is chance, what differs from
        the first pass is memory of other rows, and what differs from neither is knowledge of the future."""
        first, second = self._repeated_nats
        chance = np.abs(first - second).max(initial=0.0)
        if chance > self._tolerance_nats or self._leans(first, second) or self._leans(second, first):
            return (
                Cause.NOT_DETERMINISTIC,
                f"two answers to the same rows differ by {chance:.3g} nats: not deterministic",
            )
        scored = self._nats[SCORED][self._probed]
        memory = np.abs(first - scored).max(initial=0.0)
        if memory > self._tolerance_nats or self._leans(scored, first):
            return (
                Cause.STATEFUL,
                f"the answer to a row changes by {memory:.3g} nats with the rows asked before or beside it",
            )
        worst = self._past_differences().max(initial=0.0)
        return (
            Cause.LOOKAHEAD,
            f"the logits of the past change with the future, by {worst:.3g} nats: the model is not causal",
        )

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


def natural_future(text_N: np.ndarray, row_T: np.ndarray, cut: int, rng: np.random.Generator) -> np.ndarray:
    """Return other text for row_T[cut:], int64 [T - cut], that could follow its past and begins with another token.

    A model that looked ahead only where the next token is likely anyway would not notice a future that is plainly
    another text. So the future is taken from a place in `text_N` where the same two tokens come before, else the same
    one; where there is none, from any place. Raises ValueError when the text is shorter than two rows.
    """
    if len(text_N) < 2 * len(row_T) or cut < 1:
        raise ValueError(f"a future needs a text of two rows or more and a cut of 1 or more, got {len(text_N)}, {cut}")
    length = len(row_T) - cut
    starts = np.arange(2, len(text_N) - length + 1)
    fits = text_N[starts] != row_T[cut]
    same_one = fits & (text_N[starts - 1] == row_T[cut - 1])
    same_two = same_one & (text_N[starts - 2] == row_T[cut - 2]) if cut >= 2 else np.zeros_like(fits)
    for wanted in (same_two, same_one, fits):
        places = starts[wanted]
        if len(places):
            start = places[rng.integers(len(places))]
            return text_N[start : start + length]
    return np.full(length, row_T[cut] - 1 if row_T[cut] else 1)  # a text of one token only


def rows_at_once(seq_len: int, vocab_size: int) -> int:
    """Return how many rows a worker answers at a time: as many as LOGITS_BYTES_PER_BATCH holds, 1 to ROWS_PER_BATCH."""
    return max(1, min(ROWS_PER_BATCH, LOGITS_BYTES_PER_BATCH // (4 * seq_len * vocab_size)))
