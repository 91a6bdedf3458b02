"""Bits per byte: stable, exact, and counted over raw bytes."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from frozen_env.problem import bits
from frozen_env.problem.bits import bits_per_byte, chunk_of, nats_per_token


def test_nats_agree_with_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=5, size=(3, 100, 300)).astype(np.float32)
    targets = rng.integers(300, size=(3, 100)).astype(np.uint16)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double().flatten(0, 1),
        torch.from_numpy(targets.astype(np.int64)).flatten(),
        reduction="none",
    )
    assert np.allclose(nats_per_token(logits, targets), expected.reshape(3, 100), atol=1e-5)


def test_equal_logits_cost_the_log_of_the_vocabulary() -> None:
    nats = nats_per_token(np.full((1, 4, 512), 7.0, dtype=np.float32), np.zeros((1, 4), dtype=np.uint16))
    assert np.allclose(nats, math.log(512))


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[[3e38, -3e38], [1e4, 0.0]]], dtype=np.float32)
    nats = nats_per_token(logits, np.array([[0, 1]]))
    assert nats.tolist() == [[0.0, 1e4]]


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(1, 8, 16)).astype(np.float32)
    targets = np.arange(8)[None]
    assert np.allclose(nats_per_token(logits, targets), nats_per_token(logits + 100, targets), atol=1e-4)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_logit_poisons_its_own_position_only(poison: float) -> None:
    logits = np.zeros((1, 3, 4), dtype=np.float32)
    logits[0, 1, 2] = poison
    assert np.isnan(nats_per_token(logits, np.zeros((1, 3), dtype=int))).tolist() == [[False, True, False]]


def test_a_target_held_impossible_costs_infinitely() -> None:
    logits = np.array([[[0.0, -np.inf]]], dtype=np.float32)
    assert nats_per_token(logits, np.array([[1]]))[0, 0] == np.inf


@pytest.mark.parametrize(
    ("logits_shape", "targets", "words"),
    [
        ((2, 3, 4), [[0, 1]], "must match"),
        ((3, 4), [0, 1, 2], "must match"),
        ((1, 2, 4), [[0, 4]], r"0\.\.3.*0\.\.4"),
        ((1, 2, 4), [[-1, 0]], r"-1\.\.0"),
    ],
)
def test_wrong_shapes_and_targets_are_named(logits_shape: tuple[int, ...], targets: list[object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nats_per_token(np.zeros(logits_shape, dtype=np.float32), np.array(targets))


def test_no_tokens_cost_nothing() -> None:
    assert nats_per_token(np.zeros((0, 4, 8), dtype=np.float32), np.zeros((0, 4), dtype=int)).shape == (0, 4)


def test_one_bit_for_one_byte() -> None:
    assert bits_per_byte(math.log(2), 1) == pytest.approx(1.0)
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    assert math.isnan(bits_per_byte(math.nan, 4))


@pytest.mark.parametrize("count", [0, -3])
def test_no_bytes_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        bits_per_byte(1.0, count)


def test_a_whole_embedded_scoring_takes_little_processor_time() -> None:
    logits = np.random.default_rng(0).normal(size=(32, 256, 1024)).astype(np.float32)
    targets = np.zeros((32, 256), dtype=np.uint16)
    started = time.process_time()
    nats_per_token(logits, targets)
    assert time.process_time() - started < 0.5  # a quarter of the preset's held-out tokens; about 0.03 s in peace


def test_threads_measure_the_same() -> None:
    logits_BTV = np.random.default_rng(0).standard_normal((3, 100, 1024), dtype=np.float32)
    targets_BT = np.arange(300).reshape(3, 100)
    alone, together = nats_per_token(logits_BTV, targets_BT), nats_per_token(logits_BTV, targets_BT, threads=3)
    assert (alone == together).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_chunk_is_no_memory_of_the_worker(dtype: type) -> None:
    logits_NV = np.zeros((8, 16), dtype=dtype)
    chunk = chunk_of(logits_NV, slice(2, 6))
    assert not np.shares_memory(chunk, logits_NV)
    assert chunk.dtype == np.float32


def test_a_logit_that_changes_once_it_was_read_changes_nothing(monkeypatch) -> None:
    """What a worker would do with the memory that it shares: the largest logit is found, then another one is subtracted."""
    logits_BTV = np.zeros((1, 4, 8), dtype=np.float32)
    read = chunk_of

    def then_change(logits_NV: np.ndarray, rows: slice) -> np.ndarray:
        own = read(logits_NV, rows)
        logits_NV[:, 0] = 1000.0
        return own

    monkeypatch.setattr(bits, "chunk_of", then_change)
    assert np.allclose(nats_per_token(logits_BTV, np.zeros((1, 4), dtype=int)), math.log(8))
    assert logits_BTV.max() == 1000, "it did change, under the eyes of the measurement"


def test_logits_are_left_as_they_came() -> None:
    logits_BTV = np.random.default_rng(0).standard_normal((2, 3, 8), dtype=np.float32)
    before = logits_BTV.copy()
    nats_per_token(logits_BTV, np.zeros((2, 3), dtype=int))
    assert (logits_BTV == before).all()
