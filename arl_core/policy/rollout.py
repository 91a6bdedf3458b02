"""One sampled edit with everything that PPO needs of it, as plain data that survives a restart.

Legend of shapes: T tokens of the completion, F free tokens (more than one token was allowed), V vocabulary, B = ⌈V/8⌉.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arl_core.errors import PolicyError

FORMAT = 2
UNKNOWN_VERSION = -1


@dataclass(frozen=True)
class EditBlock:
    """One SEARCH/REPLACE block; both texts are whole lines, ending in a newline when not empty."""

    search: str
    replace: str


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled edit.

    logprobs_T: nats, float32, of each token under the masked and tempered distribution that it was drawn from; 0 where
    the grammar left one choice. values_T: the value head's answer before each token, in standard deviations of the
    reward from its running mean; 0 where forced. masks_FB: allowed tokens at each free position, np.packbits
    little-endian. temperatures_F: what the logits of each free token were divided by. policy_version: how many updates
    had changed the policy that sampled it; UNKNOWN_VERSION in those that were stored before this was kept.
    """

    prompt: str
    prompt_ids: NDArray[np.int64]
    completion: str
    completion_ids: NDArray[np.int64]
    blocks: tuple[EditBlock, ...]
    free_T: NDArray[np.bool_]
    logprobs_T: NDArray[np.float32]
    values_T: NDArray[np.float32]
    masks_FB: NDArray[np.uint8]
    ended: bool
    seed: int
    temperatures_F: NDArray[np.float32]
    seconds: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)
    policy_version: int = UNKNOWN_VERSION

    @classmethod
    def foreign(
        cls, prompt: str, completion: str, seed: int, blocks: tuple[EditBlock, ...] = (), **known: Any
    ) -> Rollout:
        """Return the edit of a proposer that does not learn: text without tokens, nothing for PPO to see."""
        none_i, none_f = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return cls(
            prompt=prompt,
            prompt_ids=none_i,
            completion=completion,
            completion_ids=none_i,
            blocks=blocks,
            free_T=np.zeros(0, dtype=np.bool_),
            logprobs_T=none_f,
            values_T=none_f,
            masks_FB=np.zeros((0, 0), dtype=np.uint8),
            ended=True,
            seed=seed,
            temperatures_F=none_f,
            **known,
        )

    @property
    def runs_again(self) -> bool:
        """Whether no edit is proposed: the incumbent is to run once more, as a control of luck."""
        return bool(self.notes.get("again"))

    def to_bytes(self) -> bytes:
        """Return the rollout as one npz archive (no pickle): arrays, and the rest as JSON."""
        meta = {
            "format": FORMAT,
            "prompt": self.prompt,
            "completion": self.completion,
            "blocks": [asdict(block) for block in self.blocks],
            "ended": self.ended,
            "seed": self.seed,
            "seconds": self.seconds,
            "notes": self.notes,
            "policy_version": self.policy_version,
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
            prompt_ids=self.prompt_ids,
            completion_ids=self.completion_ids,
            free_T=self.free_T,
            logprobs_T=self.logprobs_T,
            values_T=self.values_T,
            masks_FB=self.masks_FB,
            temperatures_F=self.temperatures_F,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Rollout:
        """Read what to_bytes wrote. Raises PolicyError when the bytes are torn or of another format."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            if meta.pop("format") != FORMAT:
                raise ValueError("unknown format")
            blocks = tuple(EditBlock(**block) for block in meta.pop("blocks"))
            return cls(blocks=blocks, **meta, **arrays)
        except Exception as error:  # zipfile, json and numpy each have their own; the caller has one
            raise PolicyError(f"a stored rollout cannot be read ({error}); drop it and sample again") from error
