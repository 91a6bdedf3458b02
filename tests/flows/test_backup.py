"""A backup is whole, is checked, and replaces nothing."""

from __future__ import annotations

import os

import pytest

from arl_core.campaign_lock import campaign_lock
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State
from flows.backup import main


@pytest.fixture
def memory_path(tmp_path):
    """A campaign of three experiments with a checkpoint, as it lies on disk."""
    path = tmp_path / "mlruns" / "memory.duckdb"
    memory = Memory(path)
    memory.create_campaign(Campaign("c", "embedded", {}, "digest", 0, "2026-11-24T00:00:00+00:00", "text"))
    for index in range(3):
        memory.commit_iteration(Experiment("c", index, "discarded", value=1.0, source="x"), State({"at": index}))
    memory.close()
    (path.parent / "campaigns" / "c" / "policy" / "step_000001").mkdir(parents=True)
    (path.parent / "campaigns" / "c" / "policy" / "step_000001" / "state.json").write_text("{}")
    (path.parent / "campaigns" / "c" / "seed_train.py").write_text("x")
    (path.parent / "campaigns" / "c" / "experiment_00001").mkdir()
    return path


def test_what_was_saved_comes_back(memory_path, tmp_path, capsys):
    backup, other = tmp_path / "backup", tmp_path / "other" / "memory.duckdb"
    assert main(["save", str(backup), "--memory", str(memory_path)]) == 0
    assert main(["load", str(backup), "--memory", str(other)]) == 0
    assert "3 experiments, checked" in capsys.readouterr().out
    memory = Memory(other, read_only=True)
    assert [one.index for one in memory.experiments("c")] == [0, 1, 2]
    assert memory.state("c") == State({"at": 2}, b"", 2)
    folder = other.parent / "campaigns" / "c"
    assert sorted(path.name for path in folder.iterdir()) == ["policy", "seed_train.py"]
    assert (folder / "policy" / "step_000001" / "state.json").read_text() == "{}"


def test_nothing_is_replaced(memory_path, tmp_path, capsys):
    backup = tmp_path / "backup"
    assert main(["save", str(backup), "--memory", str(memory_path)]) == 0
    assert main(["save", str(backup), "--memory", str(memory_path)]) == 1
    assert "holds a backup already" in capsys.readouterr().err
    before = memory_path.read_bytes()
    assert main(["load", str(backup), "--memory", str(memory_path)]) == 1
    assert "nothing is replaced" in capsys.readouterr().err
    assert memory_path.read_bytes() == before


def test_no_backup_while_a_campaign_runs(memory_path, tmp_path, capsys):
    with campaign_lock(memory_path):
        assert main(["save", str(tmp_path / "backup"), "--memory", str(memory_path)]) == 1
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "backup").exists()


def test_what_is_not_there_is_said_to_be(tmp_path, capsys):
    assert main(["save", str(tmp_path / "b"), "--memory", str(tmp_path / "none.duckdb")]) == 1
    assert main(["load", str(tmp_path / "b"), "--memory", str(tmp_path / "none.duckdb")]) == 1
    said = capsys.readouterr().err
    assert "there is no memory at" in said
    assert "there is no backup in" in said
