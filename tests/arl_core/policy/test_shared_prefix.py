"""Rows of one prompt attend to one copy of it, and what comes out is what each would have got alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from arl_core.policy import sampler, shared_prefix
from arl_core.policy.policy import Policy
from tests.arl_core.policy.conftest import PROMPT, SOURCE

Load = Callable[..., Policy]


def test_attention_over_prompt_and_own_tokens_is_plain_attention_over_both() -> None:
    rows, heads, groups, fed, prompt, own, width = 3, 6, 2, 4, 11, 7, 8
    torch.manual_seed(0)
    query = torch.randn(rows, heads, fed, width)
    ahead = [torch.randn(groups, prompt, width) for _ in range(2)]
    mine = [torch.randn(rows, groups, own, width) for _ in range(2)]
    mask = torch.rand(rows, 1, fed, own) < 0.6
    mask[..., 0] = True
    found, _ = shared_prefix.attend(
        SimpleNamespace(layer_idx=0), query, *mine, mask, scaling=0.3, shared_prefix=[(ahead[0], ahead[1])]
    )
    whole = [torch.cat([one.expand(rows, -1, -1, -1), other], dim=2) for one, other in zip(ahead, mine, strict=True)]
    seen = torch.cat([torch.ones(rows, 1, fed, prompt, dtype=torch.bool), mask], dim=3)
    expected = scaled_dot_product_attention(query, *whole, attn_mask=seen, scale=0.3, enable_gqa=True)
    assert found.shape == (rows, fed, heads, width)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("feed_most", [1, 3, 1000])
def test_many_rows_write_what_they_write_without_sharing(
    load: Load, monkeypatch: pytest.MonkeyPatch, feed_most: int
) -> None:
    monkeypatch.setattr(sampler, "FEED_MOST", feed_most)
    shared = load().propose_many([PROMPT] * 6, [SOURCE] * 6, range(6))
    monkeypatch.setattr(shared_prefix, "fits", lambda _decoder: False)
    plain = load().propose_many([PROMPT] * 6, [SOURCE] * 6, range(6))
    for one, other in zip(shared, plain, strict=True):
        assert one.completion == other.completion
        assert one.logprobs_T == pytest.approx(other.logprobs_T, abs=1e-4)
        assert one.values_T == pytest.approx(other.values_T, abs=1e-4)


def test_only_plain_attention_is_shared_and_it_is_plain_again_afterwards(load: Load) -> None:
    decoder = load().network.decoder
    assert shared_prefix.fits(decoder)
    with shared_prefix.sharing(decoder):
        assert not shared_prefix.fits(decoder)
    assert shared_prefix.fits(decoder)
    decoder.config.sliding_window = 128
    assert not shared_prefix.fits(decoder)
