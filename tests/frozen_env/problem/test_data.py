"""Preparing and loading text: reproducible, resumable, verified; rows in an order that the seed fixes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from frozen_env.contract import DataMissing, FrozenEnvError, ManifestError
from frozen_env.problem import data
from frozen_env.problem.data import (
    FILES,
    MANIFEST,
    TrainingOrder,
    held_out_rows,
    load,
    prepare,
    prepared_folder,
)
from frozen_env.problem.shards import Document, find_shards
from frozen_env.problem.tokenizer import raw_tokens
from frozen_env.spec import EnvironmentSpec

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards", "brew", "potions"]


def sentence(number: int) -> str:
    rng = np.random.default_rng(number)
    return f"Document {number}: " + " ".join(rng.choice(WORDS, 30)) + " — naïve 🙂."


def write_shard(folder: Path, index: int, texts: list[str | None]) -> None:
    folder.mkdir(exist_ok=True)
    parquet.write_table(pa.table({"text": texts}), folder / f"shard-{index}.parquet")


@pytest.fixture
def spec(tmp_path: Path) -> EnvironmentSpec:
    """Two shards of 1500 documents each."""
    folder = tmp_path / "shards"
    for index in range(2):
        write_shard(folder, index, [sentence(1500 * index + n) for n in range(1500)])
    return EnvironmentSpec(
        name="test",
        corpus="parquet",
        corpus_path=str(folder),
        vocab_size=320,
        seq_len=16,
        held_out_rows=4,
        probe_rows=2,
    )


def documents_of(folder: str | Path, validation_shard: str = "") -> list[Document]:
    shards = find_shards(str(folder), validation_shard, Path("unused"), lambda _: None)
    return [document for path in shards.paths for document in shards.documents(path)]


def digests(spec: EnvironmentSpec, where: Path) -> str:
    return (prepared_folder(spec, where) / MANIFEST).read_text()


# --- preparing --------------------------------------------------------------------------------------------------------


def test_prepared_text_is_the_text(spec: EnvironmentSpec, tmp_path: Path) -> None:
    prepare(spec, tmp_path)
    raw = raw_tokens((prepared_folder(spec, tmp_path) / "tokenizer.json").read_text())
    training = [document.text for document in documents_of(spec.corpus_path) if not document.held_out]
    tokens = load(spec, tmp_path).train_tokens
    assert b"".join(raw[token] for token in tokens) == b"".join(text.encode() + b"\0" for text in training)


def test_held_out_documents_never_reach_training(spec: EnvironmentSpec, tmp_path: Path) -> None:
    prepare(spec, tmp_path)
    folder = prepared_folder(spec, tmp_path)
    raw = raw_tokens((folder / "tokenizer.json").read_text())
    sides = [
        set(b"".join(raw[token] for token in np.load(folder / name)).split(b"\0")) - {b""}
        for name in ("train.npy", "validation.npy")
    ]
    assert len(sides[0] & sides[1]) == 0
    assert len(sides[0] | sides[1]) == 3000
    assert len(sides[1]) > 0


def test_exact_copies_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    for index in range(2):
        write_shard(tmp_path / "shards", index, [sentence(n) for n in range(600)] + [None, "", "\0"])
    documents = documents_of(tmp_path / "shards")
    assert len(documents) == 1200
    assert {d.text for d in documents if d.held_out}.isdisjoint({d.text for d in documents if not d.held_out})


def test_preparing_twice_in_two_places_gives_the_same_checksums(spec: EnvironmentSpec, tmp_path: Path) -> None:
    prepare(spec, tmp_path / "one")
    prepare(spec, tmp_path / "two")
    assert digests(spec, tmp_path / "one") == digests(spec, tmp_path / "two")


def test_preparing_again_does_nothing(spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(spec, tmp_path)
    monkeypatch.setattr(data, "_prepare", lambda *_: pytest.fail("prepared again"))
    prepare(spec, tmp_path)


def test_an_interrupted_preparation_resumes_where_it_stopped(
    spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(spec, tmp_path / "whole")
    tokenise: Callable[..., None] = data._tokenise_shard
    done: list[int] = []

    def interrupted(*arguments: object) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        tokenise(*arguments)

    monkeypatch.setattr(data, "_tokenise_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tmp_path / "broken")
    with pytest.raises(DataMissing, match="make data"):
        load(spec, tmp_path / "broken")
    monkeypatch.setattr(data, "_tokenise_shard", tokenise)
    monkeypatch.setattr(data, "train_tokenizer", lambda *_: pytest.fail("trained the tokenizer again"))
    said: list[str] = []
    prepare(spec, tmp_path / "broken", said.append)
    assert "resuming" in said[0]
    assert sum("tokenised shard" in words for words in said) == 1
    assert digests(spec, tmp_path / "broken") == digests(spec, tmp_path / "whole")


def test_work_of_other_shards_is_not_resumed(
    spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, tmp_path)
    monkeypatch.undo()
    write_shard(Path(spec.corpus_path), 2, [sentence(n) for n in range(2000, 2400)])
    said: list[str] = []
    prepare(spec, tmp_path, said.append)
    assert not any("resuming" in words for words in said)
    assert sum("tokenised shard" in words for words in said) == 3


def test_a_full_disk_is_one_clear_error(spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data, "_join", full)
    with pytest.raises(DataMissing, match="no space left"):
        prepare(spec, tmp_path)
    assert not prepared_folder(spec, tmp_path).exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "corpus_path is empty"), ("nowhere", r"no \*\.parquet file")],
)
def test_missing_shards_are_named(tmp_path: Path, path: str, words: str) -> None:
    spec = EnvironmentSpec(name="test", corpus="parquet", corpus_path=path and str(tmp_path / path))
    with pytest.raises(DataMissing, match=words):
        prepare(spec, tmp_path)


def test_a_shard_without_text_is_named(spec: EnvironmentSpec, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["a"]}), Path(spec.corpus_path) / "shard-0.parquet")
    with pytest.raises(DataMissing, match="no column `text`; it has: body"):
        prepare(spec, tmp_path)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_unprepared_text_names_the_remedy(spec: EnvironmentSpec, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="make data"):
        load(spec, tmp_path)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("harm", ["change", "truncate", "remove"])
def test_a_harmed_file_is_refused(spec: EnvironmentSpec, tmp_path: Path, name: str, harm: str) -> None:
    prepare(spec, tmp_path)
    path = prepared_folder(spec, tmp_path) / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-9] + (content[-9:][::-1] if harm == "change" else b""))
    for use in (load, prepare):
        with pytest.raises(ManifestError, match=r"delete .* and run: make data"):
            use(spec, tmp_path)


def test_a_manifest_that_agrees_with_changed_files_does_not_pass_the_pins(
    spec: EnvironmentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(spec, tmp_path)
    pins = tmp_path / "pins.toml"
    pins.write_text(f'[{data.corpus_key(spec)}]\n"train.npy" = "{"0" * 64}"\n')
    monkeypatch.setattr(data, "PINS", pins)
    with pytest.raises(ManifestError, match=r"train\.npy is not the one pinned"):
        load(spec, tmp_path)


def test_loading_needs_no_tokenizer_library(spec: EnvironmentSpec, tmp_path: Path) -> None:
    code = "import sys, frozen_env.problem.data; sys.exit(bool({'tokenizers', 'torch', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0


# --- rows -------------------------------------------------------------------------------------------------------------


def test_held_out_rows_spread_evenly_and_no_token_is_a_target_twice() -> None:
    tokens = np.arange(1001, dtype=np.uint16)
    rows = held_out_rows(tokens, 7, 100)
    assert rows.shape == (7, 101)
    assert np.unique(rows[:, 1:]).size == 700
    assert rows[0, 0] == 0
    assert rows[-1, 0] == 800
    assert (np.diff(rows, axis=1) == 1).all()
    assert np.unique(held_out_rows(tokens, 10, 100)[:, 1:]).size == 1000


def test_too_many_held_out_rows_say_how_many_there_are() -> None:
    with pytest.raises(FrozenEnvError, match=r"holds 9 rows of 100 tokens.*got 10"):
        held_out_rows(np.zeros(1000, dtype=np.uint16), 10, 100)


def test_rows_come_in_the_same_order_whatever_the_batch_size() -> None:
    tokens = np.arange(5000, dtype=np.uint16)
    whole = TrainingOrder(tokens, 32, seed=7).take(500)  # more than three epochs
    order = TrainingOrder(tokens, 32, seed=7)
    pieces = [order.take(rows) for rows in (1, 99, 7, 193, 200)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_another_seed_gives_another_order() -> None:
    tokens = np.arange(5000, dtype=np.uint16)
    assert not np.array_equal(TrainingOrder(tokens, 32, 1).take(50), TrainingOrder(tokens, 32, 2).take(50))


def test_an_epoch_shows_each_row_once_and_the_next_one_in_another_order() -> None:
    tokens = np.arange(3301, dtype=np.uint16)
    order = TrainingOrder(tokens, 33, seed=0)
    first, second = order.take(99)[:, 0], order.take(99)[:, 0]
    assert np.unique(first).size == 99
    assert not np.array_equal(np.argsort(first), np.argsort(second))


def test_rows_are_contiguous_runs_of_the_text() -> None:
    rows = TrainingOrder(np.arange(5000, dtype=np.uint16), 32, seed=3).take(400)
    assert rows.dtype == np.uint16
    assert (np.diff(rows.astype(int), axis=1) == 1).all()


def test_text_shorter_than_two_rows_and_empty_batches_are_named() -> None:
    with pytest.raises(ValueError, match="201 training tokens or more, got 150"):
        TrainingOrder(np.zeros(150, dtype=np.uint16), 100, seed=0)
    with pytest.raises(ValueError, match="positive, got 0"):
        TrainingOrder(np.zeros(500, dtype=np.uint16), 100, seed=0).take(0)
