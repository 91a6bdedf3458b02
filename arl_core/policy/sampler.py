"""Samples edits: several at once, each under its own grammar, forced tokens without a forward pass of their own.

Legend of shapes: R rows (edits being sampled), N tokens fed in one step, D width, V vocabulary.

Rows advance unevenly: after each decision a row also feeds what the grammar then forces, often ten tokens of a line. Rows of one
prompt are packed into one sequence (packing.py), so that none waits for another.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from arl_core.policy.decoder import EditDecoder, Vocabulary
from arl_core.policy.losses import masked
from arl_core.policy.network import Network
from arl_core.policy.packing import Pack, packs
from arl_core.policy.rollout import Rollout
from arl_core.policy.settings import PolicySettings


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

    def take_feed(self) -> tuple[list[int], range]:
        """Return the tokens that wait to be fed with their positions, and count them as fed."""
        ids, self.feed = self.feed, []
        positions = range(self.position, self.position + len(ids))
        self.position = positions.stop
        return ids, positions

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

    Equal prompts share one prefill; different ones, which have nothing in common, are sampled one after another.
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
    cache, cached = network.prefill(prompt_P), len(prompt_P) - 1
    if packs(network.decoder):
        _advance(network, rows, Pack(network.decoder, cache, cached))
    else:
        for row in rows:
            _advance(network, [row], Pack(network.decoder, copy.deepcopy(cache), cached))


def _advance(network: Network, rows: list[_Row], pack: Pack) -> None:
    """Feed and decide until every row has ended."""
    active = {i: row for i, row in enumerate(rows) if not row.finished}
    while active:
        owners: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        ends: list[int] = []
        for i, row in active.items():
            fed, where = row.take_feed()
            owners += [i] * len(fed)
            ids += fed
            positions += where
            ends.append(len(ids) - 1)
        fed_N = torch.tensor(ids, device=network.device)
        last_RD = pack.feed(torch.tensor(owners), fed_N, torch.tensor(positions))[ends]
        logits_RV, values_R = network.logits(last_RD), network.head(last_RD)
        for place, row in enumerate(active.values()):
            row.decide(logits_RV[place], float(values_R[place]), network.settings)
        going = {i: row for i, row in active.items() if not row.finished}
        if going and len(going) < len(active):
            pack.keep(list(going))
        active = going


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
