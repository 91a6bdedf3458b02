"""Documents to tokens on all cores, by `gigatoken` where it is installed, else by `tokenizers`.

Both give the same tokens; gigatoken is many times as fast (docs/benchmark.md). `tokenizers` stays the judge: a sample of
every batch is encoded by both, and a difference ends the preparation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frozen_env.contract import FrozenEnvError
from frozen_env.problem.tokenizer import END_OF_DOCUMENT, all_cores, byte_letters, read_tokenizer

SAMPLED = 128  # of so many documents one is encoded by both libraries
Library = Literal["gigatoken", "tokenizers"]


class Encoder:
    """One tokenizer file, ready to encode. `library` says which one is used; None takes the fastest there is."""

    def __init__(self, path: Path, library: Library | None = None) -> None:
        self._judge = read_tokenizer(path)
        self._fast = _gigatoken(path) if library != "tokenizers" else None
        if library == "gigatoken" and self._fast is None:
            raise FrozenEnvError("gigatoken is not installed; run: python -m pip install gigatoken")
        self.library: Library = "tokenizers" if self._fast is None else "gigatoken"
        end = self._judge.token_to_id(byte_letters()[ord(END_OF_DOCUMENT)])
        assert end is not None, "a byte-level vocabulary holds every byte"
        self._end = end

    def encode(self, documents: Sequence[str]) -> NDArray[np.uint16]:
        """Return the tokens of all documents, each document followed by the token of byte 0; uint16 [tokens].

        Raises FrozenEnvError when the two libraries disagree.
        """
        if not documents:
            return np.empty(0, dtype=np.uint16)
        flat, lengths = self._by_gigatoken(documents) if self._fast is not None else self._by_tokenizers(documents)
        return np.insert(flat, np.cumsum(lengths), self._end)

    def _by_tokenizers(self, documents: Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        with all_cores():
            encodings = self._judge.encode_batch_fast(list(documents), add_special_tokens=False)
        pieces = [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]
        return np.concatenate(pieces), np.array([len(piece) for piece in pieces])

    def _by_gigatoken(self, documents: Sequence[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        layout = self._fast.encode_batch(list(documents)).layout  # type: ignore[union-attr]
        offsets = np.asarray(layout.offsets.data)
        flat = np.asarray(layout.content.data)[offsets[0] : offsets[-1]].astype(np.uint16)
        sample, _ = self._by_tokenizers(documents[::SAMPLED])
        starts, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
        same = [flat[low:high] for low, high in zip(starts[::SAMPLED], ends[::SAMPLED], strict=True)]
        if not np.array_equal(sample, np.concatenate(same)):
            raise FrozenEnvError(
                "gigatoken and tokenizers disagree about a document; run: python -m pip uninstall gigatoken, prepare again, "
                "and report both versions"
            )
        return flat, ends - starts


def _gigatoken(path: Path) -> Any | None:
    try:
        import gigatoken
    except ImportError:
        return None
    return gigatoken.Tokenizer(path)
