"""The embedded text: pinned, and split so that training text does not give the held-out text away."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from frozen_env.problem.data import MANIFEST, PINS, corpus_key, load, prepared_folder
from frozen_env.problem.shards import Document
from frozen_env.problem.text import KJV_HELD_OUT, open_corpus
from frozen_env.problem.tokenizer import raw_tokens
from frozen_env.spec import EnvironmentSpec, read_preset


def word_runs(text: str, length: int) -> list[str]:
    words = re.findall(r"[a-z']+", text.lower())
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def embedded() -> EnvironmentSpec:
    return EnvironmentSpec.from_json(read_preset("embedded")["environment"])


def bible(data: Path) -> list[Document]:
    corpus = open_corpus(embedded(), data, lambda _: None)
    return [document for shard in corpus.paths for document in corpus.documents(shard)]


def test_the_embedded_text_is_pinned(prepared_data: Path) -> None:
    spec = embedded()
    assert f"[{corpus_key(spec)}]" in PINS.read_text()
    manifest = (prepared_folder(spec, prepared_data) / MANIFEST).read_text()
    assert all(line.split()[0] in PINS.read_text() for line in manifest.splitlines())


def test_held_out_books_share_almost_no_runs_of_eight_words_with_training(prepared_data: Path) -> None:
    documents = bible(prepared_data)
    training = {run for d in documents if not d.held_out for run in word_runs(d.text, 8)}
    held_out = [run for d in documents if d.held_out for run in word_runs(d.text, 8)]
    assert sum(run in training for run in held_out) / len(held_out) < 0.005


def test_whole_books_are_held_out_and_all_of_them_exist(prepared_data: Path) -> None:
    book = re.compile(r"^(.+) \d+\n")
    sides: dict[str, set[bool]] = {}
    for document in bible(prepared_data):
        match = book.match(document.text)
        assert match is not None
        sides.setdefault(match[1], set()).add(document.held_out)
    assert {name for name, side in sides.items() if side == {True}} == KJV_HELD_OUT
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) == 66


def test_held_out_rows_reach_into_most_held_out_books_and_count_their_bytes(prepared_data: Path) -> None:
    spec = embedded()
    prepared = load(spec, prepared_data)
    raw = raw_tokens((prepared_folder(spec, prepared_data) / "tokenizer.json").read_text())
    targets = prepared.held_out_BT1[:, 1:]
    text = b"".join(raw[token] for token in targets.flatten())
    assert prepared.token_bytes_V[targets].sum() == len(text)
    assert prepared.held_out_BT1.shape == (spec.held_out_rows, spec.seq_len + 1)
    names = [b"Mordecai", b"vanity", b"Nebuchadnezzar", b"Galilee", b"fellowship"]
    assert sum(name in text for name in names) >= 4
    assert int(np.max(prepared.held_out_BT1)) < spec.vocab_size
