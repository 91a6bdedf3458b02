"""Rows of one prompt are packed into one sequence, and what comes out is what each would have got alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from arl_core.policy import packing, sampler
from arl_core.policy.policy import Policy
from tests.arl_core.policy.conftest import PROMPT, SOURCE

Load = Callable[..., Policy]


def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packing, sampler):
        monkeypatch.setattr(module, "packs", lambda _decoder: False)


@pytest.mark.parametrize("prompt", [PROMPT, "x"])  # the second is one token: nothing is there that all rows see
def test_packed_rows_write_what_they_write_alone(load: Load, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    packed = load().propose_many([prompt] * 6, [SOURCE] * 6, range(6))
    no_packing(monkeypatch)
    alone = load().propose_many([prompt] * 6, [SOURCE] * 6, range(6))
    assert len({rollout.completion for rollout in alone}) > 1
    for one, other in zip(packed, alone, strict=True):
        assert one.completion == other.completion
        assert one.logprobs_T == pytest.approx(other.logprobs_T, abs=1e-4)
        assert one.values_T == pytest.approx(other.values_T, abs=1e-4)


@pytest.mark.parametrize("prompt", [PROMPT, "x"])
@pytest.mark.parametrize("prompt_grad", [False, True])
def test_packed_rows_teach_what_they_teach_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch, prompt: str, prompt_grad: bool
) -> None:
    policy = load(prompt_grad=prompt_grad)
    rollouts = policy.propose_many([prompt] * 3, [SOURCE] * 3, range(3))
    with torch.no_grad():
        for parameter in policy.network.adapter_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def gradients() -> dict[str, torch.Tensor]:
        policy.optimizer.zero_grad()
        logits = torch.cat([judged.logits_FV for judged in policy.network.judge(rollouts)])
        logits.log_softmax(-1).exp().pow(2).sum().backward()
        return {name: p.grad.clone() for name, p in policy.network.adapter_parameters().items() if p.grad is not None}

    packed = gradients()
    no_packing(monkeypatch)
    alone = gradients()
    assert packed
    assert packed.keys() == alone.keys()
    for name, gradient in alone.items():
        assert torch.allclose(packed[name], gradient, rtol=1e-3, atol=1e-4), name
    assert any(gradient.abs().max() > 1e-3 for gradient in alone.values())


@pytest.mark.parametrize("most", [1, 60, 4096])
def test_rows_come_back_in_order_however_many_passes_they_take(
    load: Load, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    policy = load()
    rows = [torch.arange(3, 3 + length) for length in (40, 0, 25, 1, 30)]
    prompt = torch.arange(100, 120)

    def hidden() -> list[torch.Tensor]:
        with torch.no_grad():
            cache = policy.network.prefill(prompt.numpy())
            return packing.behind(policy.network.decoder, cache, 19, prompt[19:], rows)

    expected = hidden()
    monkeypatch.setattr(packing, "MOST_TOKENS", most)
    assert [len(one) for one in expected] == [41, 1, 26, 2, 31]
    for found, one in zip(hidden(), expected, strict=True):
        assert torch.allclose(found, one, atol=1e-5)


@pytest.mark.parametrize("value_width", [8, 5])
def test_packed_attention_is_plain_attention(value_width: int) -> None:
    """Also where values are less wide than keys; and other masks and devices take transformers' own way."""
    heads, groups, fed, seen, width = 6, 2, 4, 11, 8
    torch.manual_seed(0)
    query, key = torch.randn(1, heads, fed, width), torch.randn(1, groups, seen, width)
    value = torch.randn(1, groups, seen, value_width)
    mask = torch.rand(1, 1, fed, seen) < 0.6
    mask[..., 0] = True
    module = SimpleNamespace(num_key_value_groups=heads // groups)
    found, _ = packing.attend(module, query, key, value, mask, scaling=0.3)
    by_heads, _ = packing.attend(module, query, key, value, mask.expand(1, heads, fed, seen), scaling=0.3)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert found.shape == (1, fed, heads, value_width)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)
    assert torch.allclose(by_heads, found, atol=1e-5)


def test_a_token_sees_the_prompt_and_its_own_row_up_to_itself() -> None:
    pack = packing.Pack(None, None, 2)
    owners = torch.tensor([0, 0, 1])
    pack.owner_L = torch.cat([pack.owner_L, owners])
    seen = pack._mask(owners, 2)
    assert seen.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_a_step_feeds_no_padding(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = packing.Pack.feed

    def counted(self: packing.Pack, owner_N: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        fed.append(len(owner_N))
        return feed(self, owner_N, *rest)

    monkeypatch.setattr(packing.Pack, "feed", counted)
    rollouts = load().propose_many([PROMPT] * 5, [SOURCE] * 5, range(5))
    # Each row's last prompt token and all of its tokens but those that end it, which nothing follows.
    assert sum(fed) <= sum(len(rollout.completion_ids) for rollout in rollouts) + 5
    assert max(fed[1:]) > 5, "what a grammar forces is fed at once"


def test_only_plain_attention_is_packed_and_it_is_plain_again_afterwards(load: Load) -> None:
    decoder = load().network.decoder
    assert packing.packs(decoder)
    with packing._packed(decoder):
        assert not packing.packs(decoder)
    assert packing.packs(decoder)
    for name in ("sliding_window", "attn_logit_softcapping", "keep_window_size"):
        setattr(decoder.config, name, 128)
        assert not packing.packs(decoder)
        setattr(decoder.config, name, None)
    assert packing.packs(decoder)
