"""Parquet shards: one held out whole, fetched from a hub, and what goes wrong with them."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from frozen_env.contract import DataMissing, FrozenEnvError, ManifestError
from frozen_env.problem.data import corpus_key, load, prepare, prepared_folder
from frozen_env.problem.shards import Shards, find_shards
from frozen_env.spec import EnvironmentSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"text": texts}), path)


def texts_of(shards: Shards, held_out: bool) -> list[str]:
    return [d.text for path in shards.paths for d in shards.documents(path) if d.held_out == held_out]


def find(path: str | Path, validation_shard: str = "", data: Path = Path("unused")) -> Shards:
    return find_shards(str(path), validation_shard, data, lambda _: None)


# --- one shard held out whole -----------------------------------------------------------------------------------------


def test_the_named_shard_is_held_out_whole_and_its_copies_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["one", "two", "three"])
    write(tmp_path / "b.parquet", ["two", "four"])
    write(tmp_path / "c.parquet", ["five", "one"])
    shards = find(tmp_path, "b.parquet")
    assert texts_of(shards, held_out=True) == ["two", "four"]
    assert texts_of(shards, held_out=False) == ["one", "three", "five", "one"]


def test_more_training_shards_leave_the_held_out_tokens_and_the_tokenizer_as_they_are(tmp_path: Path) -> None:
    words = [f"word{n} and some more of it" for n in range(600)]
    folder = tmp_path / "shards"
    for name in ("a", "held"):
        write(folder / f"{name}.parquet", [f"{name} {word}" for word in words])
    spec = EnvironmentSpec(
        name="test", corpus="parquet", corpus_path=str(folder), validation_shard="held.parquet",
        vocab_size=280, seq_len=16, held_out_rows=4, probe_rows=2,
    )  # fmt: skip
    prepare(spec, tmp_path / "few")
    write(folder / "b.parquet", [f"b {word}" for word in words])
    prepare(spec, tmp_path / "more")
    few, more = load(spec, tmp_path / "few"), load(spec, tmp_path / "more")
    assert np.array_equal(few.validation_tokens, more.validation_tokens)
    assert len(more.train_tokens) > len(few.train_tokens)


@pytest.mark.parametrize("name", ["missing.parquet", "only.parquet"])
def test_a_validation_shard_that_leaves_nothing_to_train_on_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "only.parquet", ["one"])
    with pytest.raises(DataMissing, match=rf"one of several shards.*got '{name}'.*there are: only\.parquet"):
        find(tmp_path, name)


def test_another_validation_shard_is_another_corpus() -> None:
    spec = {"name": "test", "corpus": "parquet", "corpus_path": "/somewhere"}
    keys = {corpus_key(EnvironmentSpec(**spec, validation_shard=name)) for name in ("", "a", "b")}  # type: ignore[arg-type]
    assert len(keys) == 3


def test_a_broken_shard_is_named_with_its_remedy(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["some text"] * 1000)
    content = (tmp_path / "a.parquet").read_bytes()
    for harm in (content[:-20], b"", content[:200]):
        (tmp_path / "a.parquet").write_bytes(harm)
        with pytest.raises(DataMissing, match=r"a\.parquet is not a whole parquet file .*fetch it again"):
            texts_of(find(tmp_path), held_out=False)


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_preparation_that_is_killed_goes_on_at_the_next_shard(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / "shards" / f"{index}.parquet", [f"text {n} of shard {index}" for n in range(3000)])
    values = {"corpus": "parquet", "corpus_path": str(tmp_path / "shards"), "vocab_size": 280, "seq_len": 16}
    spec = EnvironmentSpec(name="test", held_out_rows=4, probe_rows=2, **values)  # type: ignore[arg-type]
    code = f"""
import os, signal
from pathlib import Path
from frozen_env.problem.data import prepare
from frozen_env.spec import EnvironmentSpec

def say(line):
    if line.startswith("tokenised shard 1"):
        os.kill(os.getpid(), signal.SIGKILL)

prepare(EnvironmentSpec.from_json({spec.to_json()!r}), Path({str(tmp_path)!r}), say)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not prepared_folder(spec, tmp_path).exists()
    said: list[str] = []
    prepare(spec, tmp_path, said.append)
    assert said[0] == "resuming an interrupted preparation"
    assert [line.split(",")[0] for line in said[1:-1]] == ["tokenised shard 2 of 3", "tokenised shard 3 of 3"]


# --- a hub ------------------------------------------------------------------------------------------------------------


class FakeHub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks of a hub about one data set, from files in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {}
        self.said_sha256: dict[str, str] = {}
        self.asked: list[str] = []

    def entry(self, path: str) -> dict[str, Any]:
        content = self.files[path]
        digest = self.said_sha256.get(path) or hashlib.sha256(content).hexdigest()
        lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
        return {"type": "file", "path": path, "size": len(content), "oid": "0" * 40, "lfs": lfs}


class _Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(None)

    def _answer(self, body: bytes | None) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        base = "/datasets/owner/text/resolve/" + COMMIT + "/"
        headers = {"X-Repo-Commit": COMMIT}
        if path == "/api/datasets/owner/text" or path.startswith("/api/datasets/owner/text/revision/"):
            content = json.dumps({"id": "owner/text", "sha": COMMIT, "siblings": [], "tags": []}).encode()
        elif path.startswith(f"/api/datasets/owner/text/tree/{COMMIT}"):
            below = path.removeprefix(f"/api/datasets/owner/text/tree/{COMMIT}").strip("/")
            names = [name for name in hub.files if name.rpartition("/")[0] == below]
            content = json.dumps([hub.entry(name) for name in names]).encode()
        elif path.startswith(base) and path.removeprefix(base) in hub.files:
            content = hub.files[path.removeprefix(base)]
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if body is None else body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for index in range(3):
        path = tmp_path / "remote" / f"shard_{index}.parquet"
        write(path, [f"text {n} of shard {index}" for n in range(50)])
        server.files[f"data/{path.name}"] = path.read_bytes()
    server.files["data/README.md"] = b"no text"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


URL = "hf://datasets/owner/text@refs%2Fconvert%2Fparquet/data/shard_[01].parquet"


def test_shards_of_a_hub_are_fetched_once_by_pattern_with_the_validation_shard_beside_them(
    hub: FakeHub, tmp_path: Path
) -> None:
    shards = find(URL, "shard_2.parquet", tmp_path)
    assert [path.name for path in shards.paths] == ["shard_0.parquet", "shard_1.parquet", "shard_2.parquet"]
    assert shards.held_out == shards.paths[-1]
    assert [path.read_bytes() for path in shards.paths] == [hub.files[f"data/{path.name}"] for path in shards.paths]
    hub.asked.clear()
    assert find(URL, "shard_2.parquet", tmp_path).paths == shards.paths
    assert hub.asked == []


def test_a_fetch_that_broke_off_goes_on_with_the_missing_shards(hub: FakeHub, tmp_path: Path) -> None:
    whole = hub.files.copy()
    find(URL, "", tmp_path)
    (folder,) = (tmp_path / "text").iterdir()
    (folder / "data" / "shard_1.parquet").unlink()
    hub.asked.clear()
    find(URL, "", tmp_path)
    assert any("shard_1" in line for line in hub.asked)
    assert not any("shard_0" in line for line in hub.asked)
    assert (folder / "data" / "shard_1.parquet").read_bytes() == whole["data/shard_1.parquet"]


def test_a_file_that_is_not_the_one_the_hub_names_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.said_sha256["data/shard_1.parquet"] = "f" * 64
    with pytest.raises(ManifestError, match=r"shard_1\.parquet of owner/text is not the file that the hub names"):
        find(URL, "", tmp_path)
    hub.said_sha256.clear()


def test_what_a_hub_does_not_have_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="holds nothing that fits 'data/none"):
        find("hf://datasets/owner/text/data/none*.parquet", "", tmp_path)
    with pytest.raises(DataMissing, match=r"could not fetch hf://datasets/owner/other.*HF_TOKEN.*corpus_path"):
        find("hf://datasets/owner/other/*.parquet", "", tmp_path)


def test_a_hub_out_of_reach_is_one_sentence(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataMissing, match="could not fetch"):
        find(URL, "", tmp_path)


def test_a_malformed_address_is_echoed() -> None:
    with pytest.raises(FrozenEnvError, match=r"hf://datasets/OWNER/NAME.*got 'hf://nowhere'"):
        find("hf://nowhere")


def test_a_hub_corpus_is_prepared_like_any_other(hub: FakeHub, tmp_path: Path) -> None:
    spec = EnvironmentSpec(
        name="test", corpus="parquet", corpus_path=URL, validation_shard="shard_2.parquet",
        vocab_size=270, seq_len=16, held_out_rows=4, probe_rows=2,
    )  # fmt: skip
    prepare(spec, tmp_path)
    assert len(load(spec, tmp_path).train_tokens) > 0
    assert prepared_folder(spec, tmp_path).name.startswith("parquet-")
