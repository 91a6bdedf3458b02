"""Text to tokens, once: train.npy, validation.npy, token_bytes.npy and tokenizer.json in a folder of the data folder.

    prepare(spec, data_dir, say)     idempotent; an interrupted preparation is resumed at the shard where it stopped
    load(spec, data_dir)             verifies every file against its sha256, then maps it
    TrainingOrder(tokens, T, seed)   the rows of training text, in an order that the seed fixes

The checksums of the embedded preset are pinned in pins.toml; those of other settings in the MANIFEST.sha256 that
preparation leaves beside the files. The tokenizer is trained on training text alone.
Legend: B rows, T = seq_len, V token ids.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozen_env.contract import DataMissing, FrozenEnvError, ManifestError
from frozen_env.fetch import Say, sha256_file
from frozen_env.problem.encoder import Encoder
from frozen_env.problem.shards import Document
from frozen_env.problem.text import Corpus, open_corpus
from frozen_env.problem.tokenizer import token_bytes, train_tokenizer
from frozen_env.spec import EnvironmentSpec

FILES = ("tokenizer.json", "token_bytes.npy", "train.npy", "validation.npy")
MANIFEST = "MANIFEST.sha256"
PINS = Path(__file__).parent / "pins.toml"
SIDES = ("train", "validation")
TOKENIZER_SAMPLE_CHARS = 100_000_000  # of training text, from the first shard on
BATCH_CHARS = 4_000_000  # of text encoded at a time
SAY_EVERY_S = 10.0  # progress within a shard
REMEDY = "run: make data (or: python -m frozen_env prepare --preset {name})"


@dataclass(frozen=True)
class PreparedData:
    """Training and validation tokens (memory-mapped), held-out rows of T + 1 of the latter, raw bytes of each token."""

    train_tokens: NDArray[np.uint16]
    validation_tokens: NDArray[np.uint16]
    held_out_BT1: NDArray[np.uint16]
    token_bytes_V: NDArray[np.int64]


# --- where things lie -------------------------------------------------------------------------------------------------


def corpus_key(spec: EnvironmentSpec) -> str:
    """Name one tokenised corpus. seq_len and held_out_rows only cut it differently, so they are not in the name."""
    if spec.corpus == "kjv":
        return f"kjv-{spec.vocab_size}"
    path = spec.corpus_path
    where = path if path.startswith("hf:") else str(Path(path).expanduser().resolve())
    where += f" {spec.validation_shard}" if spec.validation_shard else ""
    return f"{spec.corpus}-{hashlib.sha256(where.encode()).hexdigest()[:8]}-{spec.vocab_size}"


def prepared_folder(spec: EnvironmentSpec, data_dir: Path) -> Path:
    return data_dir / "problem" / corpus_key(spec)


# --- loading ----------------------------------------------------------------------------------------------------------


def load(spec: EnvironmentSpec, data_dir: Path) -> PreparedData:
    """Return verified data.

    Raises DataMissing when it is not prepared, ManifestError when a file is not the pinned one.
    """
    folder = prepared_folder(spec, data_dir)
    if not folder.is_dir():
        raise DataMissing(f"no prepared text in {folder}; {REMEDY.format(name=spec.name)}")
    verify(spec, folder)
    validation = np.load(folder / "validation.npy", mmap_mode="r", allow_pickle=False)
    return PreparedData(
        train_tokens=np.load(folder / "train.npy", mmap_mode="r", allow_pickle=False),
        validation_tokens=validation,
        held_out_BT1=held_out_rows(validation, spec.held_out_rows, spec.seq_len),
        token_bytes_V=np.load(folder / "token_bytes.npy", allow_pickle=False),
    )


def verify(spec: EnvironmentSpec, folder: Path) -> None:
    """Check each file's sha256 against the manifest, and the manifest against the pins. Raises ManifestError."""
    again = f"delete {folder} and {REMEDY.format(name=spec.name)}"
    manifest = _read_manifest(folder / MANIFEST, again)
    for name, pinned in _pins(corpus_key(spec)).items():
        if manifest.get(name) != pinned:
            raise ManifestError(f"{folder / name} is not the one pinned in {PINS.name}; {again}")
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            raise ManifestError(f"{path} is missing; {again}")
        if sha256_file(path) != expected:
            raise ManifestError(f"{path} changed since it was prepared; {again}")


def _read_manifest(path: Path, again: str) -> dict[str, str]:
    if not path.is_file():
        raise ManifestError(f"{path} is missing; {again}")
    manifest = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        manifest[name] = digest
    if sorted(manifest) != sorted(FILES):
        raise ManifestError(f"{path} does not list {', '.join(FILES)}; {again}")
    return manifest


def _pins(key: str) -> dict[str, str]:
    pins: dict[str, dict[str, str]] = tomllib.loads(PINS.read_text(encoding="utf-8"))
    return pins.get(key, {})


def held_out_rows(validation_tokens: NDArray[np.uint16], rows: int, seq_len: int) -> NDArray[np.uint16]:
    """Cut rows of T + 1 tokens, evenly spread over the validation text; no token is a target twice.

    Raises FrozenEnvError when the text does not hold so many.
    """
    available = (len(validation_tokens) - 1) // seq_len
    if available < rows:
        raise FrozenEnvError(
            f"the validation text holds {available} rows of {seq_len} tokens; "
            f"set environment.held_out_rows to that or less, got {rows}"
        )
    starts_B = np.arange(rows) * available // rows * seq_len
    return np.asarray(validation_tokens[starts_B[:, None] + np.arange(seq_len + 1)])


class TrainingOrder:
    """An endless stream of training rows: a pure function of the seed, however many rows are taken at a time.

    Each epoch cuts the tokens into rows at an offset of its own and shuffles them.
    """

    def __init__(self, train_tokens: NDArray[np.uint16], seq_len: int, seed: int) -> None:
        needed = 2 * seq_len + 1
        if len(train_tokens) < needed:
            raise ValueError(f"rows of {seq_len} tokens need {needed} training tokens or more, got {len(train_tokens)}")
        self._tokens = train_tokens
        self._seq_len = seq_len
        self._starts = _row_starts(len(train_tokens), seq_len, seed)

    def take(self, rows: int) -> NDArray[np.uint16]:
        """Return the next rows, uint16 [rows, T + 1]. Raises ValueError unless rows is positive."""
        if rows < 1:
            raise ValueError(f"rows must be positive, got {rows!r}")
        starts_B = np.fromiter(itertools.islice(self._starts, rows), dtype=np.int64, count=rows)
        return np.asarray(self._tokens[starts_B[:, None] + np.arange(self._seq_len + 1)])


def _row_starts(tokens: int, seq_len: int, seed: int) -> Iterator[int]:
    for epoch in itertools.count():
        rng = np.random.default_rng([seed, epoch])
        offset = int(rng.integers(seq_len))
        rows = (tokens - 1 - offset) // seq_len
        yield from (offset + rng.permutation(rows) * seq_len).tolist()


# --- preparing --------------------------------------------------------------------------------------------------------


def prepare(spec: EnvironmentSpec, data_dir: Path, say: Say = lambda _: None) -> None:
    """Fetch, split, tokenise and checksum the text of a spec, unless that is done already.

    Files land under their final name all together or not at all.
    Raises DataMissing when the text cannot be had or the disk is full, ManifestError when a file is not the pinned one.
    """
    folder = prepared_folder(spec, data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock"), say):
            if folder.exists():
                verify(spec, folder)
                say(f"text is prepared in {folder}")
            else:
                _prepare(spec, data_dir, folder, say)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        remedy = "free some, or set ARL_DATA to a folder on a larger disk"
        raise DataMissing(f"no space left for the text in {data_dir}; {remedy}") from error
    load(spec, data_dir)


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """Hold a lock file for the block, waiting while another process prepares. A killed holder leaves no lock."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting: another process prepares this text")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(spec: EnvironmentSpec, data_dir: Path, folder: Path, say: Say) -> None:
    corpus = open_corpus(spec, data_dir, say)
    staging = _staging(folder, corpus.paths, say)
    tokenizer_path = staging / "tokenizer.json"
    if not tokenizer_path.is_file():
        say(f"training a byte-level BPE of {spec.vocab_size} tokens on the training text")
        text = train_tokenizer(_tokenizer_sample(corpus), spec.vocab_size)
        with _whole_file(tokenizer_path) as part:
            part.write_text(text, encoding="utf-8")
    pieces = staging / "pieces"
    pieces.mkdir(exist_ok=True)
    encoder = Encoder(tokenizer_path)
    for index, shard in enumerate(corpus.paths):
        which = f"shard {index + 1} of {len(corpus.paths)}, {shard.name}"
        _tokenise_shard(corpus, shard, encoder, [pieces / f"{side}-{index:05d}.u16" for side in SIDES], which, say)
    for side in SIDES:
        with _whole_file(staging / f"{side}.npy") as part:
            _join(sorted(pieces.glob(f"{side}-*.u16")), part)
    np.save(staging / "token_bytes.npy", token_bytes(tokenizer_path.read_text(encoding="utf-8")))
    manifest = "".join(f"{sha256_file(staging / name)}  {name}\n" for name in FILES)
    (staging / MANIFEST).write_text(manifest, encoding="utf-8")
    shutil.rmtree(pieces)
    verify(spec, staging)
    os.replace(staging, folder)
    say(f"text is prepared in {folder}")


def _staging(folder: Path, shards: list[Path], say: Say) -> Path:
    """Return the folder of work in progress, with what an earlier preparation of the same shards left there."""
    staging = folder.with_name(f".{folder.name}.partial")
    source = json.dumps([[shard.name, shard.stat().st_size] for shard in shards])
    marker = staging / "source.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") == source:
        say("resuming an interrupted preparation")
        return staging
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with _whole_file(marker) as part:
        part.write_text(source, encoding="utf-8")
    return staging


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file takes its name only when the block ends well."""
    part = path.with_name("part-" + path.name)
    yield part
    os.replace(part, path)


def _tokenizer_sample(corpus: Corpus) -> Iterator[str]:
    chars = 0
    for document in itertools.chain.from_iterable(corpus.documents(shard) for shard in corpus.paths):
        if document.held_out:
            continue
        yield document.text
        chars += len(document.text)
        if chars >= TOKENIZER_SAMPLE_CHARS:
            return


def _tokenise_shard(corpus: Corpus, shard: Path, encoder: Encoder, outputs: list[Path], which: str, say: Say) -> None:
    """Write the tokens of a shard's training and held-out documents to two raw files, unless both are there."""
    if all(path.is_file() for path in outputs):
        return
    progress = _Progress(which, say)
    with ExitStack() as stack:
        files = [stack.enter_context(stack.enter_context(_whole_file(path)).open("wb")) for path in outputs]
        for batch in _batches(corpus.documents(shard)):
            for held_out, file in enumerate(files):
                texts = [document.text for document in batch if document.held_out == bool(held_out)]
                file.write(encoder.encode(texts).tobytes())
            progress.add(sum(len(document.text.encode()) for document in batch))
    progress.end(encoder.library)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class _Progress:
    """Says how far a shard is, now and then, in megabytes of raw text."""

    def __init__(self, which: str, say: Say) -> None:
        self.which, self.say = which, say
        self.began_s = self.said_s = time.perf_counter()
        self.done_bytes = 0

    def add(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes
        now_s = time.perf_counter()
        if now_s - self.said_s >= SAY_EVERY_S:
            self.said_s = now_s
            self.say(f"tokenising {self.which}: {self._words()}")

    def end(self, library: str) -> None:
        self.say(f"tokenised {self.which}: {self._words()} with {library}")

    def _words(self) -> str:
        seconds = max(time.perf_counter() - self.began_s, 1e-9)
        return f"{self.done_bytes / 1e6:.1f} MB of text, {self.done_bytes / 1e6 / seconds:.1f} MB/s"


def _join(pieces: list[Path], path: Path) -> None:
    """Write one array out of many raw files, one of them in memory at a time."""
    tokens = sum(piece.stat().st_size for piece in pieces) // 2
    joined = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(tokens,))
    low = 0
    for piece in pieces:
        array = np.fromfile(piece, dtype=np.uint16)
        joined[low : low + len(array)] = array
        low += len(array)
    joined.flush()
