"""A candidate's folder is measured and removed whatever its shape."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frozen_env.runtime import disk, sandbox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_usage_counts_bytes_names_and_depth(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "f").write_bytes(os.urandom(100_000))
    os.symlink("/", folder / "root")
    used_bytes, entries, depth, closed = disk.usage(folder, 100)
    assert 100_000 <= used_bytes < 200_000, "what a link points to does not count"
    assert (entries, depth, closed) == (4, 3, 0)


@pytest.mark.parametrize("mode", [0o300, 0o400], ids=["no names", "no sizes"])
def test_a_folder_that_hides_what_it_holds_is_told(folder: Path, mode: int) -> None:
    """Files can be made in the one, and in the other before it is closed. Root sees all, so the test gives that up."""
    (folder / "closed").mkdir()
    (folder / "closed" / "f").write_bytes(os.urandom(100_000))
    (folder / "closed").chmod(mode)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sandbox.drop_capabilities()
            os.write(writer, repr(disk.usage(folder, 100)[3]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as said:
        assert said.read() == "1"
    assert (folder / "closed").stat().st_mode & 0o777 == mode, "it is looked at, not changed"


def test_a_sparse_file_counts_as_what_it_takes(folder: Path) -> None:
    os.truncate(os.open(folder / "f", os.O_CREAT | os.O_RDWR), 1 << 30)
    assert disk.usage(folder, 100)[0] < 1 << 20


def test_counting_ends_where_it_is_too_much(folder: Path) -> None:
    for i in range(50):
        (folder / str(i)).touch()
    assert disk.usage(folder, 10)[1] == 11


@pytest.mark.parametrize("keep", ["open", "mapped"])
def test_a_deleted_file_that_is_held_counts(folder: Path, keep: str) -> None:
    let_go = "os.closerange(3, 1024)" if keep == "mapped" else ""
    code = (
        "import mmap, os, sys\nfile = open('f', 'w+b')\nfile.write(os.urandom(1 << 20))\nfile.flush()\n"
        f"held = mmap.mmap(file.fileno(), 1 << 20)\nos.remove('f')\n{let_go}\nprint('ready', flush=True)\ninput()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert disk.usage(folder, 100)[0] < 1 << 20
        assert 1 << 20 <= disk.deleted_bytes([process.pid]) < 2 << 20
        process.kill()


def test_a_shared_mapping_without_a_file_is_memory_and_no_file() -> None:
    import mmap

    before = disk.deleted_bytes([os.getpid()])
    with mmap.mmap(-1, 1 << 20) as shared:
        shared.write(bytes(1 << 20))
        assert disk.deleted_bytes([os.getpid()]) == before


def test_a_folder_goes_however_deep_closed_or_oddly_named(folder: Path) -> None:
    at = os.open(folder, os.O_RDONLY)
    for _ in range(2000):  # deeper than a path may be long, and than Python may recurse
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (folder / "closed").mkdir()
    (folder / "closed" / "f\n\x1b[2J").touch()
    (folder / "closed").chmod(0)
    os.mkfifo(folder / "fifo")
    os.symlink("/", folder / "root")
    disk.remove(folder)
    assert list(folder.parent.iterdir()) == []
    assert os.path.isdir("/usr"), "a link is removed, not followed"


def test_on_a_full_disk_removing_makes_nothing(folder: Path, monkeypatch) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "f").touch()
    (folder / ".removing-1").touch()

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    disk.remove(folder)
    assert list(folder.parent.iterdir()) == []


def test_removing_nothing_or_a_link_is_fine(tmp_path: Path) -> None:
    disk.remove(tmp_path / "none")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    disk.remove(tmp_path / "link")
    assert (tmp_path / "real").is_dir()
    assert not (tmp_path / "link").is_symlink()
