"""`python -m flows.report`: reads a memory, running or not, and changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from arl_core.campaign_lock import campaign_lock
from arl_core.memory import Memory
from arl_core.records import State
from arl_core.report import page as drawing
from bench.report import invented_campaign, looks_timed, read
from flows.report import main
from flows.surroundings import ROOT


@pytest.fixture
def memory_path(tmp_path: Path) -> Path:
    campaign, made = invented_campaign(24)
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(campaign)
    for one in made:
        memory.commit_iteration(one, State())
    memory.close()
    return tmp_path / "memory.duckdb"


def test_the_latest_campaign_is_reported_and_the_memory_left_alone(memory_path: Path, tmp_path: Path, capsys) -> None:
    before = hashlib.sha256(memory_path.read_bytes()).hexdigest()
    assert (
        main(["--memory", str(memory_path), "--out", str(tmp_path / "out"), "--export-best", str(tmp_path / "best")])
        == 0
    )
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "best" / "train.py").is_file()
    assert "applied nothing" in capsys.readouterr().out
    assert hashlib.sha256(memory_path.read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nobody"], "no campaign 'nobody'"), (["--memory", "/nowhere/memory.duckdb"], "there is no memory at")],
)
def test_what_is_not_there_is_one_clear_line(memory_path: Path, tmp_path: Path, capsys, words, message) -> None:
    assert main(["--memory", str(memory_path), "--out", str(tmp_path / "out"), *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_campaign_commits_while_a_report_is_read(memory_path: Path) -> None:
    writer, reader = Memory(memory_path), Memory(memory_path, read_only=True)
    _, more = invented_campaign(40)
    done = threading.Event()

    def go_on() -> None:
        for one in more[25:]:
            writer.commit_iteration(one, State())
        done.set()

    thread = threading.Thread(target=go_on)
    with looks_timed(reader) as looks:
        thread.start()
        data = read(reader, "latest")
        thread.join(timeout=60)
    assert done.is_set()
    assert len(data.experiments) >= 25
    assert len(looks) > len(data.experiments), "many short looks, not one long one"


# --- how the campaign stands ------------------------------------------------------------------------------------------

CUT_OFF = "cut off: the last commit was at 2026-11-23 "
GOES_ON = "<code>python -m flows.research --preset embedded --resume invented</code> goes on"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The memory of a campaign that has committed experiment 0."""
    path = tmp_path / "memory.duckdb"
    add(path, "invented")
    return path


def page(memory_path: Path, campaign: str = "latest") -> str:
    """The page of a campaign; without its figures, which take long and say nothing of how it stands."""
    out = memory_path.parent / "page"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "draw", lambda _data: {})
        assert main([campaign, "--memory", str(memory_path), "--out", str(out)]) == 0
    return (out / "report.html").read_text(encoding="utf-8")


def add(memory_path: Path, name: str) -> None:
    """Another campaign of one experiment, begun after those that are there."""
    campaign, (first, *_) = invented_campaign(0)
    with contextlib.closing(Memory(memory_path)) as memory:
        memory.create_campaign(dataclasses.replace(campaign, id=name))
        memory.commit_iteration(dataclasses.replace(first, campaign_id=name), State())


def test_a_campaign_that_holds_its_lock_still_runs(begun: Path) -> None:
    with campaign_lock(begun):
        told = page(begun)
    assert "still running when this was written" in told
    assert "cut off" not in told


def test_a_campaign_that_was_killed_is_cut_off_and_told_how_it_goes_on(begun: Path) -> None:
    code = """
        import os, signal, sys
        from arl_core.campaign_lock import campaign_lock
        from arl_core.memory import Memory
        with campaign_lock(sys.argv[1]):
            Memory(sys.argv[1]).set_status("invented", "running")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(begun)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -9
    told = page(begun)
    assert "still running" not in told
    assert CUT_OFF in told
    assert GOES_ON in told


def test_a_campaign_on_another_memory_does_not_make_this_one_run(begun: Path, tmp_path: Path) -> None:
    with campaign_lock(tmp_path / "another.duckdb"):
        assert CUT_OFF in page(begun)


def test_a_dead_campaign_is_cut_off_while_a_later_one_runs(begun: Path) -> None:
    add(begun, "later")
    with campaign_lock(begun):
        assert CUT_OFF in page(begun, "invented")
        assert "still running" in page(begun, "later")


def test_an_earlier_campaign_that_was_resumed_runs_and_a_later_dead_one_does_not(begun: Path) -> None:
    add(begun, "later")
    with campaign_lock(begun):
        with contextlib.closing(Memory(begun)) as memory:
            memory.commit_state("invented", State(index=0))  # as every start does
        assert "still running" in page(begun, "invented")
        assert CUT_OFF in page(begun, "later")


def test_a_copied_memory_has_no_holder_and_gets_no_lock_file(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "memory.duckdb"
    with campaign_lock(begun):
        shutil.copy(begun, copy)
        assert CUT_OFF in page(copy)
    assert sorted(path.name for path in copy.parent.iterdir()) == ["memory.duckdb", "page"]


def test_a_campaign_that_died_before_its_first_experiment_is_cut_off_too(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    with contextlib.closing(Memory(tmp_path / "memory.duckdb")) as memory:
        memory.create_campaign(campaign)
    told = page(tmp_path / "memory.duckdb")
    assert "cut off before its first commit" in told
    assert GOES_ON in told


def test_a_campaign_that_ended_in_order_is_neither_running_nor_cut_off(begun: Path) -> None:
    with contextlib.closing(Memory(begun)) as memory:
        memory.set_status("invented", "finished")
    with campaign_lock(begun):
        told = page(begun)
    assert " · finished</p>" in told
    assert "cut off" not in told


def test_a_failed_campaigns_page_says_why_until_it_runs_again(begun: Path) -> None:
    with contextlib.closing(Memory(begun)) as memory:
        memory.set_status("invented", "failed", reason="GPU 0 has vanished while <b>#7</b> ran; see `nvidia-smi`")
        told = page(begun)
        assert "failed: GPU 0 has vanished while &lt;b&gt;#7&lt;/b&gt; ran; see `nvidia-smi`" in told
        memory.set_status("invented", "finished")
    assert "has vanished" not in page(begun)
