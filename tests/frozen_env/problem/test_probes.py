"""Probes look like rows: another future, which follows naturally and begins with another token."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from frozen_env.contract import Cause
from frozen_env.problem.data import load
from frozen_env.problem.language_model import PROBED, SCORED, TOLERANCE_NATS, BitsPerByte, natural_future, rows_at_once


@pytest.fixture
def plan(quick_spec, prepared_data) -> BitsPerByte:
    data = load(quick_spec, prepared_data)
    return BitsPerByte(quick_spec, data, seed=3, secret=11, tolerance_nats=TOLERANCE_NATS["cpu"])


def rows_of(batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(batches)


def test_a_probe_keeps_its_past_and_gets_another_token_at_the_cut(plan) -> None:
    scored, probed = rows_of(plan.passes[SCORED]), rows_of(plan.passes[PROBED])
    assert probed.shape[1:] == scored.shape[1:]
    for row, cut, original in zip(probed, plan._cuts, scored[plan._probed], strict=True):
        assert (row[:cut] == original[:cut]).all()
        assert row[cut] != original[cut]


def test_most_futures_follow_the_same_token_somewhere_in_the_text(plan, quick_spec, prepared_data) -> None:
    text = load(quick_spec, prepared_data).validation_tokens.tolist()
    pairs = set(itertools.pairwise(text))
    probed = rows_of(plan.passes[PROBED])
    natural = [tuple(row[cut - 1 : cut + 1].tolist()) in pairs for row, cut in zip(probed, plan._cuts, strict=True)]
    assert np.mean(natural) > 0.8


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_future_is_whole_text_of_the_right_length(cut: int) -> None:
    text = np.arange(24) * 5 % 7
    future = natural_future(text, text[:6], cut, np.random.default_rng(0))
    assert len(future) == 6 - cut
    assert future[0] != text[cut]


def test_a_future_comes_from_where_the_same_two_tokens_come_before() -> None:
    text = np.array([1, 2, 3, 9, 9, 9, 1, 2, 4, 8, 8, 8, 7, 2, 5, 6, 6, 6])
    assert natural_future(text, np.array([1, 2, 3, 9, 9, 9]), 2, np.random.default_rng(0)).tolist() == [4, 8, 8, 8]
    assert natural_future(text, np.array([7, 7, 2, 5, 9, 9]), 3, np.random.default_rng(0))[0] in (3, 4), (
        "the same one token"
    )


def test_too_short_a_text_is_named() -> None:
    with pytest.raises(ValueError, match="got 5, 2"):
        natural_future(np.arange(5), np.arange(4), 2, np.random.default_rng(0))


def test_a_text_of_one_token_still_gets_another_future() -> None:
    text = np.full(12, 5)
    assert natural_future(text, text[:4], 2, np.random.default_rng(0))[0] != 5


def test_cuts_lie_all_over_the_row(quick_spec, prepared_data) -> None:
    data = load(quick_spec, prepared_data)
    cuts = np.concatenate([BitsPerByte(quick_spec, data, 3, secret, 1.0)._cuts for secret in range(40)])
    assert cuts.min() >= 1
    assert cuts.max() <= quick_spec.seq_len - 1
    quarters = np.histogram(cuts, bins=4, range=(1, quick_spec.seq_len))[0]
    assert quarters.min() > 0.6 * quarters.max()


def test_a_seed_fixes_the_order_of_rows_and_the_secret_all_else(quick_spec, prepared_data) -> None:
    data = load(quick_spec, prepared_data)

    def made(seed: int, secret: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        plan = BitsPerByte(quick_spec, data, seed, secret, 1.0)
        return rows_of(plan.passes[SCORED]), plan._probed, plan._cuts

    rows, probed, cuts = made(3, 11)
    same_seed, same_secret = made(3, 12), made(4, 11)
    assert (same_seed[0] == rows).all(), "a value is the same when it is measured again"
    assert (same_seed[1] != probed).any()
    assert (same_seed[2] != cuts).any()
    assert (same_secret[0] != rows).any()
    assert (same_secret[1] == probed).all(), "a candidate that knows the seed knows nothing of the probes"
    assert (same_secret[2] == cuts).all()


def test_looking_ahead_everywhere_but_where_the_seed_says_is_noticed(quick_spec, prepared_data) -> None:
    """The model also knows which pass it answers, as it can from the clock or its process id."""
    plan = BitsPerByte(quick_spec, load(quick_spec, prepared_data), 3, 11, TOLERANCE_NATS["cpu"])
    rng = np.random.default_rng([3, 0x5C0E])
    rng.permutation(quick_spec.held_out_rows)
    probed = rng.choice(quick_spec.held_out_rows, quick_spec.probe_rows, replace=False)
    cuts = rng.integers(1, quick_spec.seq_len, quick_spec.probe_rows)
    for index, guesses in ((SCORED, dict(zip(probed, cuts, strict=True))), (PROBED, dict(enumerate(cuts)))):
        start = 0
        for batch, inputs_BT in enumerate(plan.passes[index]):
            logits_BTV = np.zeros((*inputs_BT.shape, quick_spec.vocab_size), np.float32)
            for row, tokens_T in enumerate(inputs_BT):
                ahead = np.delete(np.arange(len(tokens_T) - 1), guesses.get(start + row, 0) - 1)
                logits_BTV[row, ahead, tokens_T[ahead + 1]] = 20.0
            assert plan.take(index, batch, logits_BTV) == ""
            start += len(inputs_BT)
    assert plan.result()["value"] < 0.1, "it would be far better than any honest model"
    assert plan.differs()


@pytest.mark.parametrize(
    ("scored", "probed", "first", "second", "cause"),
    [
        (1.0, 2.0, 1.0, 1.0, Cause.LOOKAHEAD),
        (1.0, 2.0, 2.0, 2.0, Cause.STATEFUL),
        (1.0, 2.0, 1.0, 1.5, Cause.NOT_DETERMINISTIC),
        (1.0, 2.0, 3.0, 4.0, Cause.NOT_DETERMINISTIC),
    ],
)
def test_why_answers_differ(plan, scored: float, probed: float, first: float, second: float, cause: Cause) -> None:
    plan._nats[SCORED][:], plan._nats[PROBED][:] = scored, probed
    assert plan.differs()
    plan._repeated_nats[0], plan._repeated_nats[1] = first, second
    assert plan.explain()[0] is cause


def test_equal_answers_within_tolerance_do_not_differ(plan) -> None:
    plan._nats[PROBED][:] = TOLERANCE_NATS["cpu"] / 2
    assert not plan.differs()


# --- where the tolerance is wide ---------------------------------------------------------------------------------------


@pytest.fixture
def wide_plan(quick_spec, prepared_data) -> BitsPerByte:
    """Answers within 0.25 nats of each other are taken for the same, as on a GPU."""
    spec = dataclasses.replace(quick_spec, probe_rows=quick_spec.held_out_rows)
    return BitsPerByte(spec, load(spec, prepared_data), 3, 11, TOLERANCE_NATS["cuda"])


def answer(plan: BitsPerByte, model, *, probed_worse: float = 0.0) -> None:
    """Have `model(tokens_BT, vocab_size) -> logits_BTV` answer both passes; nats of the second are worse by so much."""
    for index in (SCORED, PROBED):
        for batch, tokens_BT in enumerate(plan.passes[index]):
            logits_BTV = model(tokens_BT, plan.output_dim).astype(np.float32)
            assert plan.take(index, batch, logits_BTV) == ""
    plan._nats[PROBED] += probed_worse


def rounding():
    """A model whose logits are off by 0.03 this way or that, anew each time: bf16 where sums come in another order."""
    rng = np.random.default_rng(0)
    return lambda tokens_BT, vocab_size: rng.normal(0, 0.03, (*tokens_BT.shape, vocab_size)).clip(-0.1, 0.1)


def ahead_by(nats: float):
    """A model that is a little surer of the token that comes, at every position."""

    def model(tokens_BT: np.ndarray, vocab_size: int) -> np.ndarray:
        logits_BTV = np.zeros((*tokens_BT.shape, vocab_size))
        rows, at = np.indices(tokens_BT[:, 1:].shape)
        logits_BTV[rows, at, tokens_BT[:, 1:]] = nats
        return logits_BTV

    return model


@pytest.mark.parametrize("nats", [0.24, 0.1, 0.05])
def test_a_little_look_ahead_at_every_position_is_noticed_where_the_tolerance_is_wide(wide_plan, nats: float) -> None:
    answer(wide_plan, ahead_by(nats))
    assert wide_plan._past_differences().max() < TOLERANCE_NATS["cuda"], "no position shows it by itself"
    assert wide_plan.differs()
    wide_plan._repeated_nats[:] = wide_plan._nats[SCORED][wide_plan._probed]
    assert wide_plan.explain()[0] is Cause.LOOKAHEAD


def test_rounding_is_not_taken_for_look_ahead(wide_plan) -> None:
    answer(wide_plan, rounding())
    assert wide_plan._past_differences().max() > TOLERANCE_NATS["cpu"]
    assert not wide_plan.differs()
    rng = np.random.default_rng(0)
    for _ in range(200):
        wide_plan._nats[PROBED][:] = wide_plan._nats[SCORED][wide_plan._probed]
        wide_plan._nats[PROBED] += np.clip(rng.normal(0, 0.03, wide_plan._nats[PROBED].shape), -0.2, 0.2)
        assert not wide_plan.differs()


@pytest.mark.parametrize(("worse_nats", "cause"), [(0.02, Cause.STATEFUL), (0.0, Cause.LOOKAHEAD)])
def test_a_little_memory_is_told_from_a_little_look_ahead(wide_plan, worse_nats: float, cause: Cause) -> None:
    answer(wide_plan, ahead_by(0.1), probed_worse=worse_nats)
    wide_plan._repeated_nats[:] = wide_plan._nats[SCORED][wide_plan._probed] + worse_nats
    assert wide_plan.differs()
    assert wide_plan.explain()[0] is cause


@pytest.mark.parametrize(
    ("seq_len", "vocab_size", "rows"),
    [(128, 2048, 16), (2048, 8192, 1), (1024, 8192, 2), (4096, 65536, 1), (16, 256, 16)],
)
def test_a_batch_of_logits_is_bounded(seq_len: int, vocab_size: int, rows: int) -> None:
    assert rows_at_once(seq_len, vocab_size) == rows
