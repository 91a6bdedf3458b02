"""Rows of tokens behind one prompt, packed into one sequence: nothing is padded, and the prompt is there once.

Several edits of one prompt are sampled and learned from together. As a batch, each would carry a copy of the prompt's keys and
values, and wait in padding for the longest: while one row reads ten tokens that its grammar forces, most others read one.
Here all tokens of all rows follow each other behind the prompt, and the attention's mask lets each see the prompt and its own
row only, so what comes out is what each row would get alone. (Packing with block-diagonal masks: Krell et al. 2021, arXiv
2107.02027; a prompt that is there once: Juravsky et al. 2024, Hydragen, arXiv 2402.05099.)

Models that attend otherwise than by plain scaled dot products over all that is before (sliding windows, recurrent layers, capped
logits) get their rows one by one.

Legend of shapes: N tokens fed in one step, L tokens so far, H heads, G groups (key-value heads), W width of a head, D width.
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
PROMPT = -1  # whose tokens every row sees


def packs(decoder: Any) -> bool:
    """Say whether a decoder attends plainly: scaled dot products over everything before, through the named interface."""
    config = decoder.config
    plain = config._attn_implementation == "sdpa" and getattr(decoder, "_supports_attention_backend", False)
    windowed = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    return bool(plain and not windowed and not getattr(config, "attn_logit_softcapping", None))


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
    if not packs(decoder) and len(rows) > 1:
        return [behind(decoder, copy.deepcopy(cache), cached, prefix_P, [row])[0] for row in rows]
    lengths = [len(row) for row in rows]
    owner_N = torch.cat(
        [torch.full((len(prefix_P),), PROMPT if len(rows) > 1 else 0)]
        + [torch.full((length,), i) for i, length in enumerate(lengths)]
    )
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
    query_1HNW: Tensor,
    key_1GLW: Tensor,
    value_1GLW: Tensor,
    mask_11NL: Tensor,
    scaling: float | None = None,
    **_rest: Any,
) -> tuple[Tensor, None]:
    """Return what attention gives, [1, N, H, W]. Groups take the place of the batch, so that heads of a group share keys and
    values by a stride of 0 where transformers would copy them for each."""
    _, heads, fed, width = query_1HNW.shape
    groups, seen = key_1GLW.shape[1:3]
    each = heads // groups
    out_GENW = scaled_dot_product_attention(
        query_1HNW.view(groups, each, fed, width),
        key_1GLW[0, :, None].expand(groups, each, seen, width),
        value_1GLW[0, :, None].expand(groups, each, seen, width),
        attn_mask=mask_11NL,
        scale=scaling,
    )
    return out_GENW.reshape(1, heads, fed, width).transpose(1, 2).contiguous(), None
