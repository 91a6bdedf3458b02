"""Parquet shards of text: where they come from, and which documents are held out.

`corpus_path` is a folder, or a place on the Hugging Face hub with a pattern for the shards' names:

    hf://datasets/OWNER/NAME[@REVISION]/[FOLDER/]shard_0000[0-9].parquet

Shards of the hub are fetched once, one by one; what an interrupted fetch left is gone on with, and every file must have
the size and the sha256 that the hub names. The revision (a slash in it written as %2F) is resolved to a commit at the first
look and kept.

Either `validation_shard` names one shard that is held out whole, the same text however many shards are trained on, and
documents that it holds are dropped from training; or, when it is empty, a document's own sha256 decides. Both ways an
exact copy of a held-out document is never trained on.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from frozen_env.contract import DataMissing, FrozenEnvError, ManifestError
from frozen_env.fetch import Say, sha256_file
from frozen_env.problem.tokenizer import END_OF_DOCUMENT

HELD_OUT_SHARE = 1 / 200  # of the documents, where no shard is held out whole
ROWS_AT_ONCE = 1024  # documents decoded at a time
HUB_URL = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<pattern>.+)")
LISTING = "shards.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    text: str
    held_out: bool


@dataclass
class Shards:
    """The shards of one corpus in a fixed order, the one that is held out whole last."""

    paths: list[Path]
    held_out: Path | None = None
    _held_out_digests: set[bytes] | None = field(default=None, repr=False)

    def documents(self, shard: Path) -> Iterator[Document]:
        """Yield the documents of one shard in order, without empty ones and copies of held-out ones.

        Raises DataMissing when the shard has no column `text` or cannot be read.
        """
        if shard == self.held_out:
            yield from (Document(text, held_out=True) for text in read_texts(shard))
            return
        for text in read_texts(shard):
            digest = _digest(text)
            if self.held_out is None:
                yield Document(text, held_out=int.from_bytes(digest, "big") / 2**64 < HELD_OUT_SHARE)
            elif digest not in self._held_out():
                yield Document(text, held_out=False)

    def _held_out(self) -> set[bytes]:
        if self._held_out_digests is None:
            assert self.held_out is not None
            self._held_out_digests = {_digest(text) for text in read_texts(self.held_out)}
        return self._held_out_digests


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:8]


# --- finding ----------------------------------------------------------------------------------------------------------


def find_shards(corpus_path: str, validation_shard: str, data_dir: Path, say: Say) -> Shards:
    """Return the shards that `corpus_path` names, fetching them from the hub where it names that.

    Raises DataMissing when they are not to be had, ManifestError when a fetched file is not the one that the hub names.
    """
    if not corpus_path:
        raise DataMissing("environment.corpus_path is empty; set it to a folder of parquet shards with a column `text`")
    if corpus_path.startswith("hf:"):
        names, folder = _fetch(corpus_path, validation_shard, data_dir, say)
        found = [folder / name for name in names]
    else:
        folder = Path(corpus_path).expanduser()
        found = sorted(folder.glob("*.parquet"))
    if not found:
        raise DataMissing(f"{corpus_path} holds no *.parquet file; set environment.corpus_path to parquet shards")
    training = [path for path in found if path.name != validation_shard]
    if not validation_shard:
        return Shards(training)
    if len(training) != len(found) - 1 or not training:
        raise DataMissing(
            f"environment.validation_shard must name one of several shards in {corpus_path}, got {validation_shard!r}; "
            f"there are: {', '.join(path.name for path in found[:5])}{', …' if len(found) > 5 else ''}"
        )
    (held_out,) = (path for path in found if path.name == validation_shard)
    return Shards([*training, held_out], held_out)


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of one parquet file that are not empty, without the byte that ends documents."""
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataMissing("reading parquet shards needs pyarrow; run: python -m pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataMissing(f"{path} has no column `text`; it has: {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if clean := (text or "").replace(END_OF_DOCUMENT, ""):
                        yield clean
    except (ArrowException, OSError) as error:
        raise DataMissing(f"{path} is not a whole parquet file ({error}); remove it or fetch it again") from error


# --- the hub ----------------------------------------------------------------------------------------------------------


def _fetch(url: str, validation_shard: str, data_dir: Path, say: Say) -> tuple[list[str], Path]:
    """Have every shard of a hub URL in a folder of its own. Return the names there, and the folder."""
    match = HUB_URL.fullmatch(url)
    if match is None:
        raise FrozenEnvError(
            "environment.corpus_path must be a folder or hf://datasets/OWNER/NAME[@REVISION]/PATTERN.parquet, "
            f"got {url!r}"
        )
    repo, pattern = match["repo"], match["pattern"]
    revision = unquote(match["revision"]) if match["revision"] else None
    wanted = f"{url} {validation_shard}"
    folder = data_dir / "text" / f"hub-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / LISTING
    if not listing.is_file():
        say(f"asking the hub for the shards of {repo}")
        names = [pattern, *([_beside(pattern, validation_shard)] if validation_shard else [])]
        _write_whole(listing, json.dumps(_hub(url, lambda: _list(repo, revision, names)), indent=1))
    known = json.loads(listing.read_text(encoding="utf-8"))
    files = known["files"]
    for index, (name, facts) in enumerate(files.items(), start=1):
        _fetch_one(url, repo, known["commit"], name, facts, folder, f"shard {index} of {len(files)}", say)
    return list(files), folder


def _beside(pattern: str, name: str) -> str:
    return f"{pattern.rpartition('/')[0]}/{name}".lstrip("/")


def _list(repo: str, revision: str | None, patterns: list[str]) -> dict[str, Any]:
    """Ask the hub for the commit of a revision, and for size and sha256 of its files that fit one of the patterns."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    commit = api.dataset_info(repo, revision=revision).sha
    below = patterns[0].rpartition("/")[0]
    entries = api.list_repo_tree(repo, below or None, revision=commit, repo_type="dataset")
    found = {
        entry.path: {"size": entry.size, "sha256": entry.lfs.sha256 if entry.lfs else ""}
        for entry in entries
        if isinstance(entry, RepoFile) and any(fnmatch.fnmatchcase(entry.path, one) for one in patterns)
    }
    if not found:
        raise DataMissing(
            f"the hub's {repo} holds nothing that fits {patterns[0]!r}; look at its files and set the pattern"
        )
    return {"commit": commit, "files": dict(sorted(found.items()))}


def _fetch_one(
    url: str, repo: str, commit: str, name: str, facts: dict[str, Any], folder: Path, which: str, say: Say
) -> None:
    target = folder / name
    if target.is_file() and target.stat().st_size == facts["size"]:
        return  # it was checked when it was fetched, and its tokens are checked on every load
    say(f"fetching {which}, {name}: {facts['size'] / 1e6:.0f} MB")
    part = folder / "part"

    def download() -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit, local_dir=part))

    fetched = _hub(url, download)
    if fetched.stat().st_size != facts["size"] or facts["sha256"] not in ("", sha256_file(fetched)):
        fetched.unlink()
        raise ManifestError(
            f"{name} of {repo} is not the file that the hub names; it was removed, run again to fetch it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    fetched.rename(target)


def _hub(url: str, ask: Callable[[], T]) -> T:
    """Call the hub's library; whatever goes wrong but a full disk becomes one sentence with a remedy."""
    try:
        return ask()
    except (DataMissing, ManifestError):
        raise
    except ImportError as error:
        raise DataMissing("the hub needs huggingface_hub; run: python -m pip install huggingface_hub") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DataMissing(
            f"could not fetch {url}: {said[0]}. Check the name, the network and the hub's login (HF_TOKEN) and run again, "
            "or set environment.corpus_path to a folder of parquet shards"
        ) from error


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name("part-" + path.name)
    part.write_text(text, encoding="utf-8")
    part.rename(path)
