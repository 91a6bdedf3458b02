"""The tokenizer: total, reproducible, and honest about bytes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from frozen_env.contract import FrozenEnvError
from frozen_env.problem.encoder import Encoder
from frozen_env.problem.tokenizer import byte_letters, raw_tokens, read_tokenizer, token_bytes, train_tokenizer

DOCUMENTS = [
    "In the beginning God created the heaven and the earth. And the earth was without form, and void.",
    "In the beginning was the Word, and the Word was with God, and the Word was God.",
    "And God said, Let there be light: and there was light. And God saw the light, that it was good.",
]
FOREIGN = ["naïve café", "日本語の文字", "🙂👩‍👩‍👧 emoji", "русский", "\t\r\n  tabs", "\x01\x7f\u200b", "ﬁ ﬂ ½"]


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return train_tokenizer(DOCUMENTS, 300)


def tokens_of(tokenizer_json: str, folder: Path, documents: list[str]) -> list[NDArray[np.uint16]]:
    path = folder / "tokenizer.json"
    path.write_text(tokenizer_json, encoding="utf-8")
    encoder = Encoder(path)
    return [encoder.encode([document]) for document in documents]


def test_any_text_survives_byte_for_byte(tokenizer_json: str, tmp_path: Path) -> None:
    raw = raw_tokens(tokenizer_json)
    for text, tokens in zip(FOREIGN, tokens_of(tokenizer_json, tmp_path, FOREIGN), strict=True):
        assert b"".join(raw[token] for token in tokens) == text.encode() + b"\0"


@pytest.mark.parametrize("text", FOREIGN)
def test_token_bytes_add_up_to_the_utf8_length(tokenizer_json: str, tmp_path: Path, text: str) -> None:
    (tokens,) = tokens_of(tokenizer_json, tmp_path, [text])
    assert token_bytes(tokenizer_json)[tokens].sum() == len(text.encode()) + 1


def test_a_character_split_across_tokens_is_not_counted_as_replacement_characters(
    tokenizer_json: str, tmp_path: Path
) -> None:
    (tokens,) = tokens_of(tokenizer_json, tmp_path, ["🙂"])
    path = tmp_path / "tokenizer.json"
    through_decode = sum(len(read_tokenizer(path).decode([int(token)]).encode()) for token in tokens[:-1])
    assert through_decode == 12  # four bytes, each decoded to U+FFFD
    assert token_bytes(tokenizer_json)[tokens[:-1]].sum() == 4


def test_every_token_has_bytes_and_all_bytes_have_a_token(tokenizer_json: str) -> None:
    raw = raw_tokens(tokenizer_json)
    assert len(raw) == 300
    assert min(map(len, raw)) >= 1
    assert {bytes([byte]) for byte in range(256)} <= set(raw)
    assert len(set(byte_letters())) == 256


def test_every_document_ends_with_the_token_of_byte_zero(tokenizer_json: str, tmp_path: Path) -> None:
    end = raw_tokens(tokenizer_json).index(b"\0")
    for tokens in tokens_of(tokenizer_json, tmp_path, [*DOCUMENTS, *FOREIGN]):
        assert (tokens == end).sum() == 1
        assert tokens[-1] == end


def test_the_same_documents_give_the_same_tokenizer(tokenizer_json: str) -> None:
    assert train_tokenizer(iter(DOCUMENTS), 300) == tokenizer_json


def test_common_words_become_one_token(tokenizer_json: str) -> None:
    assert b" the" in raw_tokens(tokenizer_json)


def test_the_file_holds_nothing_that_depends_on_the_library_version(tokenizer_json: str) -> None:
    fields = json.loads(tokenizer_json)
    assert set(fields) == {"version", "pre_tokenizer", "decoder", "model"}
    merges = fields["model"]["merges"]
    assert all(len(pair) == 2 for pair in merges)
    assert len(merges) == 300 - 256


@pytest.mark.parametrize("vocab_size", [0, 255, 65537])
def test_an_impossible_vocabulary_is_named(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=str(vocab_size)):
        train_tokenizer(DOCUMENTS, vocab_size)


def test_a_vocabulary_too_large_for_the_text_says_what_would_fit() -> None:
    with pytest.raises(FrozenEnvError, match=r"only \d+ tokens.*got 5000"):
        train_tokenizer(itertools.islice(DOCUMENTS, 2), 5000)
