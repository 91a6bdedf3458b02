"""Teaches edits by example: TRL's SFTTrainer over rows of one prompt with several completions.

Legend of shapes: P prompt tokens, K edits under one prompt, T completion tokens, V vocabulary.

As in the PPO update, one pass over the prompt serves all its edits, its keys and values are constants for the gradient,
and only free tokens count, under the masks that they are sampled with: what the grammar rules out need not be learned. That
makes an edit cost a tenth of a plain example of 1,200 tokens, so hundreds fit into minutes on two idle cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from arl_core.errors import PolicyError
from arl_core.policy.decoder import RESERVE_TOKENS, EditDecoder, Vocabulary
from arl_core.policy.losses import masked
from arl_core.policy.packing import behind
from arl_core.policy.settings import PolicySettings
from arl_core.policy.synthesis import Blocks, Example, completion

IGNORED = -100  # the label of tokens that carry no loss


@dataclass(frozen=True)
class Edit:
    """Token ids [T], labels [T] that are IGNORED at forced tokens, and what was allowed at the F free ones, packed [F, ⌈V/8⌉]."""

    ids: list[int]
    labels: list[int]
    masks: NDArray[np.uint8]


@dataclass(frozen=True)
class Lesson:
    """One prompt's token ids and the edits to teach under it."""

    prompt: list[int]
    edits: list[Edit]


def encode(example: Example, tokenizer: Any, vocabulary: Vocabulary, settings: PolicySettings) -> Lesson:
    """Return the lesson of an example. Edits that the decoder would not allow, or that are too long, are left out."""
    prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    edits = [encode_edit(example.source, blocks, tokenizer, vocabulary, settings) for blocks in example.edits]
    return Lesson(list(prompt), [edit for edit in edits if edit is not None])


def encode_edit(
    source: str, blocks: Blocks, tokenizer: Any, vocabulary: Vocabulary, settings: PolicySettings
) -> Edit | None:
    """Return one edit with its end token, or None when it is too long or the grammar has no way to say it."""
    ids = [*tokenizer(completion(blocks), add_special_tokens=False)["input_ids"], vocabulary.end_id]
    if len(ids) > settings.max_new_tokens - RESERVE_TOKENS:
        return None
    labels, masks = [], []
    try:
        decoder = EditDecoder(source, vocabulary, settings)
        for token in ids:
            allowed_V = decoder.allowed()
            if not allowed_V[token]:
                return None
            free = np.count_nonzero(allowed_V) > 1
            labels.append(token if free else IGNORED)
            if free:
                masks.append(np.packbits(allowed_V, bitorder="little"))
            decoder.take(token)
    except PolicyError:
        return None
    return Edit(ids, labels, np.stack(masks)) if decoder.done and masks else None


def collate(lesson: Lesson, vocab_size: int) -> dict[str, Tensor]:
    """Return a lesson as tensors, its K edits one behind the other: prompt [1, P], lengths [K], ids [N], labels [N], allowed [F, V]
    at the F free tokens."""
    packed = np.concatenate([edit.masks for edit in lesson.edits])
    allowed = np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little").astype(bool)
    return {
        "prompt": torch.tensor([lesson.prompt]),
        "lengths": torch.tensor([len(edit.ids) for edit in lesson.edits]),
        "ids": torch.tensor([token for edit in lesson.edits for token in edit.ids]),
        "labels": torch.tensor([label for edit in lesson.edits for label in edit.labels]),
        "allowed": torch.from_numpy(allowed),
    }


def lesson_loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of one collated lesson's free tokens under their masks, nats; `model` is a PeftModel."""
    base = model.get_base_model()
    decoder = base.get_decoder()
    prompt_1P, labels_N = inputs["prompt"], inputs["labels"]
    rows = torch.split(inputs["ids"], inputs["lengths"].tolist())
    with torch.no_grad():
        cache = decoder(input_ids=prompt_1P[:, :-1], use_cache=True).past_key_values
    last = prompt_1P.shape[1] - 1
    hidden_ND = torch.cat(behind(decoder, cache, last, prompt_1P[0, last:], [row[:-1] for row in rows]))
    counts_N = labels_N != IGNORED
    logits_FV = masked(base.get_output_embeddings()(hidden_ND[counts_N]), inputs["allowed"], temperature=1.0)
    return cross_entropy(logits_FV, labels_N[counts_N])


class LessonTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose examples are lessons: the loop, the optimizer, the schedule and the log are TRL's."""

    def _reject_skip_prepare_without_labels(self, *_: Any) -> None:
        """Our collator builds the labels."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = lesson_loss(self.accelerator.unwrap_model(model), inputs)
        return (loss, {}) if return_outputs else loss
