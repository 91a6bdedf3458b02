"""Samples edits: several at once, each under its own grammar, forced tokens without a forward pass of their own.

Legend of shapes: R rows (edits being sampled), K tokens fed in one step, L tokens in the cache, D width, V vocabulary.

Rows advance unevenly: after each decision a row also feeds what the grammar then forces (often ten tokens of a line), a few
tokens a step, so that others decide meanwhile. Shorter feeds are padded on the right; the padding stays in the cache and is
masked for ever, positions skip it. Many rows of one prompt attend to one copy of it (shared_prefix.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arl_core.policy import shared_prefix
from arl_core.policy.decoder import EditDecoder, Vocabulary
from arl_core.policy.losses import masked
from arl_core.policy.network import Network, spread
from arl_core.policy.rollout import Rollout
from arl_core.policy.settings import PolicySettings

FEED_MOST = 4  # of one row in one step of many: who follows ten forced tokens at once makes all others feed padding


class _Row:
    """One edit in the making."""

    def __init__(
        self, prompt_ids: NDArray[np.int64], source: str, seed: int, vocabulary: Vocabulary, settings: PolicySettings
    ) -> None:
        self.decoder = EditDecoder(source, vocabulary, settings)
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.free: list[bool] = []
        self.logprobs: list[float] = []
        self.values: list[float] = []
        self.masks: list[NDArray[np.uint8]] = []
        self.temperatures: list[float] = []
        self.feed = [int(prompt_ids[-1])]
        self.position = len(prompt_ids) - 1  # of the first token of `feed`
        self._follow_grammar()

    @property
    def finished(self) -> bool:
        return self.decoder.done or self.decoder.left <= 0

    def decide(self, logits_V: torch.Tensor, value: float, settings: PolicySettings) -> None:
        """Draw one token from the masked and tempered distribution and feed it with what it forces."""
        allowed_V = self.decoder.allowed()
        writes = self.decoder.phase == "replace"
        temperature = settings.temperature if writes else settings.search_temperature
        tempered_V = masked(logits_V.cpu(), torch.from_numpy(allowed_V), temperature)
        logprobs_V = tempered_V.log_softmax(-1)
        token = int(torch.multinomial(logprobs_V.exp(), 1, generator=self.generator))
        self.free.append(True)
        self.logprobs.append(float(logprobs_V[token]))
        self.values.append(value)
        self.temperatures.append(temperature)
        self.masks.append(np.packbits(allowed_V, bitorder="little"))
        self.decoder.take(token)
        self.feed = [token]
        self._follow_grammar()

    def take_feed(self, most: int) -> list[int]:
        """Return up to `most` of the tokens that wait to be fed, and count them as fed."""
        part, self.feed = self.feed[:most], self.feed[most:]
        self.position += len(part)
        return part

    def _follow_grammar(self) -> None:
        for token in self.decoder.forced():
            self.feed.append(token)
            self.free.append(False)
            self.logprobs.append(0.0)
            self.values.append(0.0)


def sample(
    network: Network,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    prompt_ids: Sequence[NDArray[np.int64]],
    sources: Sequence[str],
    seeds: Sequence[int],
) -> list[Rollout]:
    """Return one rollout per prompt. The same seed, prompt and weights give the same edit, alone or among equals.

    Equal prompts share one prefill; different ones are sampled one after another, since their lengths differ.
    """
    rollouts: dict[int, Rollout] = {}
    for members in group_equal(prompt_ids):
        started = time.monotonic()
        rows = [_Row(prompt_ids[i], sources[i], seeds[i], vocabulary, network.settings) for i in members]
        _run(network, rows, prompt_ids[members[0]])
        seconds = (time.monotonic() - started) / len(members)
        for i, row in zip(members, rows, strict=True):
            rollouts[i] = _finish(row, prompts[i], prompt_ids[i], seconds)
    return [rollouts[i] for i in range(len(prompts))]


def group_equal(prompt_ids: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Return lists of indices with equal prompts, in order of first appearance."""
    groups: dict[bytes, list[int]] = {}
    for i, ids in enumerate(prompt_ids):
        groups.setdefault(np.asarray(ids, dtype=np.int64).tobytes(), []).append(i)
    return list(groups.values())


@torch.no_grad()
def _run(network: Network, rows: list[_Row], prompt_P: NDArray[np.int64]) -> None:
    cache = network.prefill(prompt_P)
    if cache is None or len(rows) < shared_prefix.LEAST_ROWS or not shared_prefix.fits(network.decoder):
        _advance(network, rows, spread(cache, len(rows)), len(prompt_P) - 1, {})
        return
    with shared_prefix.sharing(network.decoder):
        _advance(network, rows, None, 0, {"shared_prefix": shared_prefix.prefix_of(cache)})


def _advance(network: Network, rows: list[_Row], cache: Any, cached: int, more: dict[str, Any]) -> None:
    """Decide and feed until every row has ended. `cached` prompt tokens are in each row's cache; with a shared prefix in
    `more` there are none, and the mask speaks of a row's own tokens only."""
    active = list(rows)
    seen_RL = torch.ones(len(rows), cached, dtype=torch.bool)
    while active:
        starts = torch.tensor([row.position for row in active])
        parts = [row.take_feed(FEED_MOST if len(active) > 1 else len(row.feed)) for row in active]
        fed = [len(part) for part in parts]
        widest = max(fed)
        ids = torch.tensor([part + [0] * (widest - len(part)) for part in parts])
        positions = starts[:, None] + torch.arange(widest)
        real = torch.arange(widest)[None, :] < torch.tensor(fed)[:, None]
        before = seen_RL.shape[1]
        seen_RL = torch.cat([seen_RL, real], dim=1)
        mask: torch.Tensor | None = seen_RL.long()
        if more:
            past = torch.arange(seen_RL.shape[1])[None, :] <= before + torch.arange(widest)[:, None]
            # Padding sees itself, so that no row of the mask is empty.
            mask = seen_RL[:, None, None, :] & past | torch.eye(seen_RL.shape[1], dtype=torch.bool)[before:]
        elif bool(seen_RL.all()):
            mask = None
        out = network.decoder(
            input_ids=ids.to(network.device),
            position_ids=positions.to(network.device),
            attention_mask=None if mask is None else mask.to(network.device),
            past_key_values=cache,
            use_cache=True,
            **more,
        )
        cache = out.past_key_values
        last_RD = out.last_hidden_state[torch.arange(len(active)), torch.tensor(fed) - 1]
        logits_RV, values_R = network.logits(last_RD), network.head(last_RD)
        for i, row in enumerate(active):
            if not row.feed and not row.finished:
                row.decide(logits_RV[i], float(values_R[i]), network.settings)
        going = [i for i, row in enumerate(active) if not row.finished]
        if going and len(going) < len(active):
            cache.batch_select_indices(torch.tensor(going, device=network.device))
            seen_RL = seen_RL[going]
        active = [active[i] for i in going]


def _finish(row: _Row, prompt: str, prompt_ids: NDArray[np.int64], seconds: float) -> Rollout:
    tokens = row.decoder.tokens
    size = -(-row.decoder.vocabulary.size // 8)
    return Rollout(
        prompt=prompt,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int64),
        completion=row.decoder.text(),
        completion_ids=np.array(tokens, dtype=np.int64),
        blocks=tuple(row.decoder.blocks),
        free_T=np.array(row.free, dtype=bool),
        logprobs_T=np.array(row.logprobs, dtype=np.float32),
        values_T=np.array(row.values, dtype=np.float32),
        masks_FB=np.stack(row.masks) if row.masks else np.zeros((0, size), dtype=np.uint8),
        ended=row.decoder.done,
        seed=row.seed,
        temperatures_F=np.array(row.temperatures, dtype=np.float32),
        seconds=seconds,
    )
