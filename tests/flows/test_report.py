"""`python -m flows.report`: reads a memory, running or not, and changes nothing."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from arl_core.memory import Memory
from arl_core.records import State
from bench.report import invented_campaign, looks_timed, read
from flows.report import main


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
