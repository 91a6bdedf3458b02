"""A byte-level BPE: every token stands for one or more raw bytes, any text can be written in it, nothing is left out.

There are no special tokens. The token of byte 0, which text never holds, ends each document.
The file that we write is our own minimal form of tokenizer.json, so that its checksum does not depend on the version
of the `tokenizers` library; `Tokenizer.from_file` reads it. The library is imported only where text is prepared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frozen_env.contract import FrozenEnvError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_DOCUMENT = "\0"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def byte_letters() -> list[str]:
    """Return the letter that stands for each byte 0..255 in a byte-level vocabulary (GPT-2's table).

    Printable bytes stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> str:
    """Return the JSON text of a tokenizer trained on documents; the same documents give the same text.

    Raises ValueError when vocab_size is not in 256..65536, FrozenEnvError when the text is too small for it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not 256 <= vocab_size <= 65536:
        raise ValueError(f"environment.vocab_size must lie in 256..65536, got {vocab_size!r}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=byte_letters(), show_progress=False)
    with all_cores():
        tokenizer.train_from_iterator(documents, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    if len(model["vocab"]) != vocab_size:
        raise FrozenEnvError(
            f"the training text yields only {len(model['vocab'])} tokens; set environment.vocab_size to that or less, "
            f"got {vocab_size}"
        )
    return _canonical(model["vocab"], model["merges"])


def _canonical(vocab: dict[str, int], merges: list[Any]) -> str:
    pairs = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges]
    model = {"type": "BPE", "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "merges": pairs}
    fields = {"version": "1.0", "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL, "model": model}
    return json.dumps(fields, ensure_ascii=True, indent=0) + "\n"


def read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def raw_tokens(tokenizer_json: str) -> list[bytes]:
    """Return the raw bytes of each token id, from the vocabulary itself.

    Never through decode(): it turns half a character into U+FFFD, three bytes for one, and so lowers bits per byte.
    """
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    vocab: dict[str, int] = json.loads(tokenizer_json)["model"]["vocab"]
    raw = [b""] * len(vocab)
    for token, index in vocab.items():
        raw[index] = bytes(byte_of[letter] for letter in token)
    return raw


def token_bytes(tokenizer_json: str) -> NDArray[np.int64]:
    """Return the number of raw bytes of each token, int64 [V], each at least 1."""
    return np.array([len(raw) for raw in raw_tokens(tokenizer_json)], dtype=np.int64)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let `tokenizers` use every core, whatever it is told elsewhere for the sake of processes that fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = before if before is not None else "false"
