"""Two libraries, one result: which of them encodes is a matter of speed alone."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frozen_env.contract import FrozenEnvError
from frozen_env.problem import encoder as module
from frozen_env.problem.encoder import Encoder
from frozen_env.problem.tokenizer import all_cores, raw_tokens, train_tokenizer

CODE_POINTS = [
    *range(1, 0x250),
    *range(0x300, 0x370),
    *range(0x2000, 0x2070),
    0x3000,
    0x4E2D,
    0xFEFF,
    0x1F642,
    0x10FFFF,
]
LETTERS = [chr(code_point) for code_point in CODE_POINTS]
WORDS = [" ", "  ", "\n", "\t", "'s", "'ll", "9", "42", ".", "!?", "the", " the", "’s", "light"]


def odd_documents(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choice(rng.choice((LETTERS, WORDS))) for _ in range(rng.randrange(24))) for _ in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(["let there be light: and there was light, and the light was good"], 270))
    return path


def test_documents_come_back_byte_for_byte_each_with_its_end(path: Path) -> None:
    documents = odd_documents(2000)
    raw = raw_tokens(path.read_text())
    tokens = Encoder(path, "tokenizers").encode(documents)
    assert tokens.dtype == np.uint16
    assert b"".join(raw[token] for token in tokens) == b"".join(text.encode() + b"\0" for text in documents)


def test_both_libraries_give_the_same_tokens(path: Path) -> None:
    pytest.importorskip("gigatoken")
    documents = odd_documents(20_000)
    fast, slow = Encoder(path, "gigatoken"), Encoder(path, "tokenizers")
    assert np.array_equal(fast.encode(documents), slow.encode(documents))


def test_no_documents_give_no_tokens(path: Path) -> None:
    assert Encoder(path).encode([]).shape == (0,)


class Wrong:
    """Encodes every document as two tokens 7."""

    def encode_batch(self, documents: list[str]) -> SimpleNamespace:
        flat, offsets = np.full(2 * len(documents), 7, np.uint32), np.arange(0, 2 * len(documents) + 1, 2)
        content = SimpleNamespace(data=flat)
        return SimpleNamespace(layout=SimpleNamespace(offsets=SimpleNamespace(data=offsets), content=content))


def test_a_library_that_disagrees_ends_the_preparation(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gigatoken", lambda _path: Wrong())
    with pytest.raises(FrozenEnvError, match=r"disagree about a document.*uninstall gigatoken"):
        Encoder(path).encode(["let there be light"])


def test_a_library_that_is_not_there_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_gigatoken", lambda _path: None)
    assert Encoder(path).library == "tokenizers"
    with pytest.raises(FrozenEnvError, match="pip install gigatoken"):
        Encoder(path, "gigatoken")


def test_all_cores_are_used_only_while_encoding(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    with all_cores():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
