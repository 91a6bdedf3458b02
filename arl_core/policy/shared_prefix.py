"""Attention of many rows over one prompt: its keys and values are read once, not once per row.

While edits of one prompt are sampled together, nearly all that attention reads is the prompt, and transformers would copy it
for every row and every head of a group. Here rows and heads of a group are queries of one product with the prompt's keys;
what a row has written itself is attended to apart, and both are joined by their normalisers (as FlashAttention joins its
blocks: Dao et al. 2022, arXiv 2205.14135, section 3.1; for shared prompts Juravsky et al. 2024, Hydragen, arXiv 2402.05099).

Legend of shapes: R rows, H heads, G groups (key-value heads), N = H / G, K tokens fed in one step, P tokens of the prompt, L
tokens that a row has of its own, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NAME = "arl_shared_prefix"
LEAST_ROWS = 4  # below, what is saved is not worth it
Prefix = list[tuple[Tensor, Tensor]]  # keys and values of the prompt, [G, P, D] each, by layer


def fits(decoder: Any) -> bool:
    """Say whether a decoder attends plainly: scaled dot products over everything before, through the named interface."""
    config = decoder.config
    plain = config._attn_implementation == "sdpa" and getattr(decoder, "_supports_attention_backend", False)
    windowed = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    return bool(plain and not windowed and not getattr(config, "attn_logit_softcapping", None))


def prefix_of(cache: Any) -> Prefix:
    """Return a one-row cache as the prefix that rows share."""
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


@contextlib.contextmanager
def sharing(decoder: Any) -> Iterator[None]:
    """Let the decoder attend by `attend` for a while; its forward pass is then given `shared_prefix` and a mask [R, 1, K, L]."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


def attend(
    module: Any,
    query_RHKD: Tensor,
    key_RGLD: Tensor,
    value_RGLD: Tensor,
    mask_R1KL: Tensor,
    scaling: float,
    shared_prefix: Prefix,
    **_rest: Any,
) -> tuple[Tensor, None]:
    """Return what attention gives, [R, K, H, D]: over the whole prompt, and over a row's own tokens where the mask is true."""
    rows, heads, fed, width = query_RHKD.shape
    groups, own = key_RGLD.shape[1], key_RGLD.shape[2]
    each = heads // groups
    keys_GPD, values_GPD = shared_prefix[module.layer_idx]
    query_RGND = query_RHKD.reshape(rows, groups, each * fed, width) * scaling
    query_GND = query_RGND.transpose(0, 1).reshape(groups, rows * each * fed, width)
    ahead = (query_GND @ keys_GPD.transpose(1, 2)).float().view(groups, rows, each * fed, -1).transpose(0, 1)
    mine = (query_RGND @ key_RGLD.transpose(2, 3)).float()
    seen = mask_R1KL[:, :, None].expand(rows, 1, each, fed, own).reshape(rows, 1, each * fed, own)
    mine = mine.masked_fill(~seen, float("-inf"))
    top = torch.maximum(ahead.amax(-1, keepdim=True), mine.amax(-1, keepdim=True))
    ahead, mine = (ahead - top).exp(), (mine - top).exp()
    total = ahead.sum(-1, keepdim=True) + mine.sum(-1, keepdim=True)
    flat = ahead.to(values_GPD.dtype).transpose(0, 1).reshape(groups, rows * each * fed, -1)
    from_prompt = (flat @ values_GPD).view(groups, rows, each * fed, width).transpose(0, 1)
    out = (from_prompt.float() + (mine.to(value_RGLD.dtype) @ value_RGLD).float()) / total
    return out.to(query_RHKD.dtype).reshape(rows, heads, fed, width).transpose(1, 2).contiguous(), None
