"""How fast text is prepared: parquet shards to tokens on disk, in megabytes of raw text a second.

python -m bench.prepare --json [--megabytes 64] [--shards 4] [--libraries gigatoken,tokenizers] [--path FOLDER]

Without --path it writes parquet shards of documents drawn from the King James Bible's verses (seeded, so every machine
prepares the same text; fewer different words than the web has, so caches of words help more). Each library then
prepares the whole in a folder of its own: tokenizer, tokens, checksums. `tokenise_mb_s` counts the tokenising alone (reading
parquet, splitting, encoding, writing), `prepare_mb_s` everything. The files must be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from frozen_env.contract import ResearchError
from frozen_env.fetch import data_dir
from frozen_env.problem import data, encoder
from frozen_env.problem.encoder import Library
from frozen_env.problem.text import open_corpus
from frozen_env.spec import EnvironmentSpec, read_preset

VERSES_PER_DOCUMENT = 30
ROWS_PER_GROUP = 1024


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.prepare", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--megabytes", type=float, default=64, help="of generated text (default: 64)")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--path", help="folder of parquet shards, instead of generated ones")
    parser.add_argument("--libraries", default="gigatoken,tokenizers", help="which encode, in this order")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        path = Path(options.path) if options.path else Path(folder) / "shards"
        if not options.path:
            generate(path, options.megabytes, options.shards)
        figures = measure(path, Path(folder), options.libraries.split(","))
    for library, row in figures["libraries"].items():
        print(f"{library:12} {row['tokenise_mb_s']:8.1f} MB/s tokenising, {row['prepare_mb_s']:8.1f} MB/s in all")
    if options.json:
        print(json.dumps(figures))
    return 0


def generate(folder: Path, megabytes: float, shards: int) -> None:
    """Write parquet shards of documents of thirty verses each, zstd-compressed as on the hub."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    bible = open_corpus(EnvironmentSpec.from_json(read_preset("embedded")["environment"]), data_dir(), print)
    verses = [
        line for path in bible.paths for document in bible.documents(path) for line in document.text.split("\n")[1:]
    ]
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for index in range(shards):
        texts, size = [], 0
        while size < megabytes * 1e6 / shards:
            texts.append("\n".join(rng.sample(verses, VERSES_PER_DOCUMENT)))
            size += len(texts[-1].encode())
        parquet.write_table(
            pa.table({"text": texts}),
            folder / f"{index:03d}.parquet",
            compression="zstd",
            row_group_size=ROWS_PER_GROUP,
        )


def measure(path: Path, scratch: Path, libraries: list[Library]) -> dict[str, Any]:
    """Prepare the shards once with each library. Raises ResearchError when the results differ."""
    values = read_preset("overnight")["environment"] | {"corpus_path": str(path), "validation_shard": ""}
    spec = EnvironmentSpec.from_json(values | {"held_out_rows": 1, "probe_rows": 0, "seq_len": 128})
    corpus = open_corpus(spec, scratch, print)
    size_mb = sum(len(document.text.encode()) for shard in corpus.paths for document in corpus.documents(shard)) / 1e6
    rows, manifests = {}, set()
    for library in libraries:
        rows[library] = _prepare(spec, scratch / library, library, size_mb)
        manifests.add((data.prepared_folder(spec, scratch / library) / data.MANIFEST).read_text(encoding="utf-8"))
    if len(manifests) != 1:
        raise ResearchError(f"{' and '.join(libraries)} prepared different tokens; report both versions")
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pyarrow", *libraries)}
    return {
        "megabytes": size_mb,
        "shards": len(corpus.paths),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions,
        "libraries": rows,
    }


def _prepare(spec: EnvironmentSpec, where: Path, library: Library, size_mb: float) -> dict[str, float]:
    """Prepare once with one library, timing the whole and the tokenising."""
    tokenising_s = 0.0
    tokenise = data._tokenise_shard

    def timed(*arguments: Any) -> None:
        nonlocal tokenising_s
        began_s = time.perf_counter()
        tokenise(*arguments)
        tokenising_s += time.perf_counter() - began_s

    with (
        mock.patch.object(data, "_tokenise_shard", timed),
        mock.patch.object(data, "Encoder", lambda path: encoder.Encoder(path, library)),
    ):
        began_s = time.perf_counter()
        data.prepare(spec, where, print)
        whole_s = time.perf_counter() - began_s
    return {"tokenise_mb_s": size_mb / tokenising_s, "prepare_mb_s": size_mb / whole_s, "prepare_s": whole_s}


if __name__ == "__main__":
    sys.exit(main())
