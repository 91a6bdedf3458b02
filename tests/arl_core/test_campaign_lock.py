"""One campaign at a time: the lock names who runs, and ends with its process."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from arl_core import campaign_lock as module
from arl_core.campaign_lock import campaign_lock, is_held
from arl_core.errors import CampaignLocked, MemoryFileError
from tests.arl_core.memories import ROOT


def test_a_second_campaign_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    path = tmp_path / "memory.duckdb"
    with campaign_lock(path), pytest.raises(CampaignLocked, match=f"process {os.getpid()} on"), campaign_lock(path):
        pass
    with campaign_lock(path) as lock:
        assert lock.name == "memory.duckdb.lock"


def _hold(path: str, connection: multiprocessing.connection.Connection) -> None:
    with campaign_lock(path):
        connection.send("held")
        time.sleep(60)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path / "m"), there))
    holder.start()
    assert here.recv() == "held"
    with pytest.raises(CampaignLocked, match=f"kill -TERM {holder.pid}"), campaign_lock(tmp_path / "m"):
        pass
    holder.kill()
    holder.join()
    with campaign_lock(tmp_path / "m"):
        pass


def test_a_forked_child_does_not_keep_a_dead_campaign_locked(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        from arl_core.campaign_lock import campaign_lock
        with campaign_lock(sys.argv[1]):
            if not os.fork():
                print(os.getpid(), flush=True)
                time.sleep(60)
            os.wait()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            with campaign_lock(tmp_path / "m"):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryFileError, match="cannot open the campaign lock"), campaign_lock(tmp_path / "file" / "m"):
        pass


# --- whether somebody holds it ----------------------------------------------------------------------------------------


def test_somebody_holds_the_lock_as_long_as_a_campaign_runs(tmp_path: Path) -> None:
    with campaign_lock(tmp_path / "m"):
        assert is_held(tmp_path / "m")
        assert is_held(tmp_path / "m"), "to ask takes nothing away"
        assert not is_held(tmp_path / "another")
    assert not is_held(tmp_path / "m")
    with campaign_lock(tmp_path / "m"):
        pass


def test_whoever_was_killed_holds_nothing(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path / "m"), there))
    holder.start()
    assert here.recv() == "held"
    assert is_held(tmp_path / "m")
    holder.kill()
    holder.join()
    assert not is_held(tmp_path / "m")


def test_to_ask_makes_no_file_and_needs_no_right_to_write(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "m")
    assert not is_held(tmp_path / "nowhere" / "m")
    assert list(tmp_path.iterdir()) == []
    with campaign_lock(tmp_path / "m") as lock:
        lock.chmod(0o444)
        tmp_path.chmod(0o555)
        try:
            assert is_held(tmp_path / "m")
        finally:
            tmp_path.chmod(0o755)
    assert [path.name for path in tmp_path.iterdir()] == ["m.lock"]


@pytest.mark.parametrize(
    ("error", "held"),
    [(PermissionError(errno.EACCES, "not yours"), True), (OSError(errno.ELOOP, "round and round"), False)],
    ids=["cannot be told", "not there"],
)
def test_a_lock_that_may_not_be_read_counts_as_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, held: bool
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    assert is_held(tmp_path / "m") == held


def test_a_campaign_that_begins_while_somebody_looks_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with campaign_lock(tmp_path / "m") as path:
        pass
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(module.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with campaign_lock(tmp_path / "m"):
            assert is_held(tmp_path / "m")
