"""Rows of tokens behind one prompt, packed into one sequence: nothing is padded, and the prompt is there once.

Several edits of one prompt are sampled and learned from together. As a batch, each would carry a copy of the prompt's keys and
values, and wait in padding for the longest: while one row reads ten tokens that its grammar forces, most others read one.
Here all tokens of all rows follow each other behind the prompt, and the attention's mask lets each see the prompt and its own
row only, so what comes out is what each row would get alone. (Packing with block-diagonal masks: Krell et al. 2021, arXiv
2107.02027; a prompt that is there once: Juravsky et al. 2024, Hydragen, arXiv 2402.05099.)

Models that attend otherwise than by plain scaled dot products over all that is before (sliding windows, recurrent layers, capped
logits) get their rows one by one.

Legend of shapes: N tokens fed in one step, L tokens so far, P tokens of the prompt, T of a row, D width; in attention H heads, G
groups (key-value heads), E heads of a group, W width of a head.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "arl_packed"
MOST_TOKENS = 4096  # that are learned from in one pass: the mask's rows, kept for each layer until backward
PROMPT = -1  # whose tokens every row sees


def packs(decoder: Any) -> bool:
    """Say whether a decoder attends plainly: scaled dot products over everything before, through the named interface."""
    config = decoder.config
    plain = config._attn_implementation == "sdpa" and getattr(decoder, "_supports_attention_backend", False)
    odd = ("sliding_window", "attn_logit_softcapping", "keep_window_size")
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return bool(plain and not layers and not any(getattr(config, name, None) for name in odd))


class Pack:
    """Rows that grow behind one prompt. `cache` holds the prompt's `cached` tokens (None: 0) and becomes the pack's own."""

    def __init__(self, decoder: Any, cache: Any, cached: int) -> None:
        self.decoder, self.cache = decoder, cache
        self.owner_L = torch.full((cached,), PROMPT)

    def feed(self, owner_N: Tensor, ids_N: Tensor, position_N: Tensor) -> Tensor:
        """Return hidden states [N, D] of tokens that continue their owners' rows, each row's in order.

        Owners are any numbers from 0 on, or PROMPT. A model that does not pack must be fed one row only.
        """
        before = len(self.owner_L)
        self.owner_L = torch.cat([self.owner_L, owner_N])
        alone = bool((self.owner_L[self.owner_L != PROMPT] == owner_N[-1]).all())
        device = ids_N.device
        with contextlib.nullcontext() if alone else _packed(self.decoder):
            out = self.decoder(
                input_ids=ids_N[None],
                position_ids=position_N.to(device)[None],
                attention_mask=None if alone else self._mask(owner_N, before).to(device)[None, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = out.past_key_values
        hidden_ND: Tensor = out.last_hidden_state[0]
        return hidden_ND

    def keep(self, owners: Sequence[int]) -> None:
        """Forget the rows of all others."""
        kept_L = torch.isin(self.owner_L, torch.tensor([PROMPT, *owners]))
        self.owner_L = self.owner_L[kept_L]
        for layer in self.cache.layers:
            columns = kept_L.nonzero()[:, 0].to(layer.keys.device)
            layer.keys, layer.values = layer.keys[:, :, columns], layer.values[:, :, columns]

    def _mask(self, owner_N: Tensor, before: int) -> Tensor:
        """Return who sees whom, [N, L]: the prompt and one's own row, up to oneself."""
        place_N, place_L = before + torch.arange(len(owner_N)), torch.arange(len(self.owner_L))
        own_NL = (self.owner_L == PROMPT) | (self.owner_L == owner_N[:, None])
        return own_NL & (place_L <= place_N[:, None])


def behind(decoder: Any, cache: Any, cached: int, prefix_P: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return each row's hidden states, [1 + T, D]: that of the last token of `prefix_P`, then those of the row's own tokens.

    The prefix ([P], P ≥ 1) follows the `cached` tokens of the prompt that `cache` holds; the cache is used up.
    """
    lengths = [len(row) for row in rows]
    if len(rows) > 1 and (not packs(decoder) or sum(lengths) > MOST_TOKENS):
        half = len(rows) // 2
        copied = copy.deepcopy(cache)
        return [
            *behind(decoder, copied, cached, prefix_P, rows[:half]),
            *behind(decoder, cache, cached, prefix_P, rows[half:]),
        ]
    of_prefix = torch.full((len(prefix_P),), PROMPT)
    owner_N = torch.cat([of_prefix] + [torch.full((length,), i) for i, length in enumerate(lengths)])
    first = cached + len(prefix_P)
    position_N = torch.cat([torch.arange(cached, first)] + [first + torch.arange(length) for length in lengths])
    hidden_ND = Pack(decoder, cache, cached).feed(owner_N, torch.cat([prefix_P, *rows]), position_N)
    of_rows = torch.split(hidden_ND[len(prefix_P) :], lengths)
    return [torch.cat([hidden_ND[len(prefix_P) - 1][None], hidden_TD]) for hidden_TD in of_rows]


@contextlib.contextmanager
def _packed(decoder: Any) -> Iterator[None]:
    """Let the decoder attend by `attend` for a while."""
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return what attention gives, [1, N, H, W]; query [1, H, N, W], key and value [1, G, L, W], mask [1, 1, N, L].

    On a CPU groups take the place of the batch, so that heads of a group share keys and values by a stride of 0 where transformers
    copies them for each, which takes a fifth of the time of sampling 32 edits. Not on a GPU: with such strides the
    memory-efficient kernel of torch 2.13 reads a wrong row of the mask for some N (pytorch issue 191937).
    """
    if query.device.type != "cpu" or attention_mask.shape[1] != 1:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
        return out
    _, heads, fed, width = query.shape
    groups = key.shape[1]
    each = heads // groups
    out_GENW = scaled_dot_product_attention(
        query.view(groups, each, fed, width),
        key[0, :, None].expand(-1, each, -1, -1),
        value[0, :, None].expand(-1, each, -1, -1),
        attn_mask=attention_mask,
        dropout_p=rest.get("dropout", 0.0),
        scale=scaling,
    )
    return out_GENW.reshape(1, heads, fed, -1).transpose(1, 2).contiguous(), None
