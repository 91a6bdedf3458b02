"""The memory's file survives kills, threads and full disks; what is wrong with it is said, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arl_core import memory_file
from arl_core.errors import MemoryFileError
from arl_core.memory import Memory
from arl_core.records import State
from tests.arl_core.memories import ROOT, campaign, experiment


def test_a_killed_writer_loses_no_commit_and_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "memory.duckdb"
    Memory(path).create_campaign(campaign())
    code = """
        import sys
        from arl_core.memory import Memory
        from arl_core.records import Experiment, State
        memory = Memory(sys.argv[1])
        while True:
            index = memory.next_index("c")
            experiment = Experiment("c", index, "discarded", value=1.0, source="x" * 5000)
            memory.commit_iteration(experiment, State({"i": index}))
            print(index, flush=True)
    """
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(5)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        memory = Memory(path)
        indices = [one.index for one in memory.experiments("c")]
        state = memory.state("c")
        assert state is not None
        assert indices == list(range(len(indices)))
        assert indices[-1] >= told[-1], "a commit that was told is there"
        assert state.index == indices[-1] == state.values["i"], "state and experiment agree"


def test_threads_may_share_a_memory(memory: Memory) -> None:
    def work(start: int) -> None:
        for index in range(start, start + 3):
            memory.commit_iteration(experiment(index, 1.0), State())
            Memory(memory.path, read_only=True).recent("c")

    threads = [threading.Thread(target=work, args=(10 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory.experiments("c")) == 12


def test_a_forked_child_has_an_engine_of_its_own(memory: Memory) -> None:
    memory.commit_iteration(experiment(0, 1.0), State())
    child = os.fork()
    if not child:
        os._exit(len(memory.experiments("c")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_an_engine_is_let_go_before_it_has_grown(memory: Memory) -> None:
    """DuckDB keeps something of an attach until the instance closes: 19 kB for a commit and five reads (docs/log.md)."""
    engines = set()
    for index in range(2 * memory_file.ATTACHES + 5):
        if index % 100 == 0:
            memory.commit_iteration(experiment(index, 1.0), State())
        with memory.reading() as db:
            engines.add(db)
            with memory.reading() as inner:
                assert inner is db, "a block in a block shares the engine that the outer one has open"
    assert len(engines) == 3
    assert [one.index for one in memory.experiments("c")] == list(range(0, 2 * memory_file.ATTACHES + 5, 100))


# --- what can be wrong ------------------------------------------------------------------------------------------------


@contextmanager
def another_process_holds(path: Path, seconds: float) -> Iterator[int]:
    code = f"import duckdb, time; c = duckdb.connect({str(path)!r}); print('ready', flush=True); time.sleep({seconds})"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_file_held_for_long_is_an_error_that_names_the_holder(memory: Memory) -> None:
    with another_process_holds(memory.path, 30) as pid:
        for read_only in (True, False):
            with pytest.raises(MemoryFileError, match=f"held by process {pid}"):
                Memory(memory.path, read_only=read_only, wait_s=0.2)


def test_a_file_held_for_a_moment_is_waited_for(memory: Memory) -> None:
    with another_process_holds(memory.path, 0.5):
        memory.commit_iteration(experiment(0, 1.0), State())
    assert memory.next_index("c") == 1


def test_nobody_holds_the_file_between_calls(memory: Memory) -> None:
    memory.commit_iteration(experiment(0, 1.0), State())
    with another_process_holds(memory.path, 0.1):
        pass
    assert not memory.path.with_name(memory.path.name + ".wal").exists()


@pytest.mark.parametrize("damage", ["noise", "empty", "cut", "flipped"])
def test_a_file_that_cannot_be_read_is_said_to_be_and_left_alone(memory: Memory, damage: str) -> None:
    for index in range(6):
        noise = os.urandom(50_000)
        memory.commit_iteration(experiment(index, 1.0, completion=noise.hex()[:4000]), State(blob=noise))
    whole = memory.path.read_bytes()
    flipped = bytes(byte ^ (i >= 4096 and i % 97 == 0) for i, byte in enumerate(whole))
    broken = {"noise": os.urandom(20_000), "empty": b"", "cut": whole[: len(whole) // 3], "flipped": flipped}[damage]
    memory.path.write_bytes(broken)
    with pytest.raises(MemoryFileError, match="move it aside"):
        Memory(memory.path).experiments("c")
    assert memory.path.read_bytes() == broken
    memory.path.write_bytes(whole)
    assert len(memory.experiments("c")) == 6, "the same object works again once the file does"


def test_a_newer_schema_is_refused(memory: Memory) -> None:
    with memory._open(write=True) as db:
        db.execute("update m.schema_version set version = 99")
    with pytest.raises(MemoryFileError, match="schema 99"):
        Memory(memory.path)


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    with another_process_holds(tmp_path / "other.duckdb", 0):
        time.sleep(0.1)
    before = (tmp_path / "other.duckdb").read_bytes()
    with pytest.raises(MemoryFileError, match="not a memory"):
        Memory(tmp_path / "other.duckdb", wait_s=5)
    assert (tmp_path / "other.duckdb").read_bytes() == before


def test_reading_wants_a_file_and_never_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="no memory at"):
        Memory(tmp_path / "none.duckdb", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(memory: Memory) -> None:
    with pytest.raises(ValueError, match="read_only"):
        Memory(memory.path, read_only=True).commit_state("c", State())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemoryFileError, match="cannot create"):
        Memory(tmp_path / "file" / "memory.duckdb")


def test_a_quote_in_the_path_is_no_sql(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "it's; drop" / "memory.duckdb")
    assert memory.campaigns() == []


def test_a_full_disk_refuses_the_commit_and_loses_nothing(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.commit_iteration(experiment(0, 1.0), State())
    with monkeypatch.context() as full:
        full.setattr(memory_file, "MIN_FREE_MB", 2**40)
        with pytest.raises(MemoryFileError, match="no disk space"):
            memory.commit_iteration(experiment(1, 1.0), State())
    assert memory.next_index("c") == 1
    memory.commit_iteration(experiment(1, 1.0), State())


def test_a_disk_that_fills_in_the_middle_of_a_commit_loses_nothing(memory: Memory) -> None:
    """A limit on the file size stands in for the disk's end, in a process of its own."""
    memory.commit_iteration(experiment(0, 1.0), State())
    code = """
        import os, resource, signal, sys
        from arl_core.errors import MemoryFileError
        from arl_core.memory import Memory
        from arl_core.records import Experiment, State
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        memory = Memory(sys.argv[1])
        limit = os.path.getsize(sys.argv[1]) + 300_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            for index in range(1, 100):
                memory.commit_iteration(Experiment("c", index, "discarded", value=1.0), State(blob=os.urandom(200_000)))
                print(index, flush=True)
        except MemoryFileError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(memory.path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    *told, message = done.stdout.splitlines()
    assert "no disk space" in message, done
    committed = [one.index for one in memory.experiments("c")]
    assert committed == list(range(len(committed)))
    assert committed[-1] >= int(told[-1])
