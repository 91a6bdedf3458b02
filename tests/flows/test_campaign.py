"""Whole campaigns through the command line: real Prefect, DuckDB, MLflow, host and sandbox; a tiny policy, short budgets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arl_core.campaign_lock import campaign_lock
from arl_core.config import preset_names
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment
from frozen_env.contract import Status

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "policy.model": "tiny-random",
    "policy.batch_edits": 2,
    "environment.budget_s": 1.0,
    "environment.check_every_s": 0.25,
    "environment.grace_s": 4.0,
    "environment.threads": 1,
    "target.DEPTH": 1,
    "target.WIDTH": 32,
    "target.HEAD_DIM": 16,
    "target.BATCH_ROWS": 2,
}


def run_campaign(folder: Path, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """`python -m flows.research --preset embedded` with its memory in `folder`."""
    chosen = QUICK | {"memory": str(folder / "mlruns" / "memory.duckdb")} | settings
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    if "--resume" in words:
        sets = ["--set", f"memory={chosen['memory']}"]
    command = [sys.executable, "-m", "flows.research", "--preset", "embedded", *words, *sets]
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "COLUMNS": "160"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path):
    """A campaign of five experiments, and what it printed."""
    folder = tmp_path_factory.mktemp("campaign")
    done = run_campaign(folder, "--iterations", "4")
    assert done.returncode == 0, done.stderr
    memory = Memory(folder / "mlruns" / "memory.duckdb", read_only=True)
    campaign = memory.get_campaign("latest")
    return folder, done.stdout, campaign, memory.experiments(campaign.id)


def test_every_experiment_is_in_the_memory_with_what_a_reader_needs(finished):
    folder, _, campaign, experiments = finished
    assert [one.index for one in experiments] == [0, 1, 2, 3, 4]
    assert campaign.status == "finished"
    seed = experiments[0]
    assert (seed.status, seed.parent_index, seed.reward) == (Status.KEPT, None, None)
    assert seed.value is not None
    assert "DEPTH = 1" in seed.source, "the preset's constants are written into the campaign's own copy"
    for one in experiments[1:]:
        assert one.prompt
        assert one.completion
        assert one.reward is not None
        assert -1 <= one.reward <= 1
        assert one.parent_index is not None
        ran = one.status not in (Status.REJECTED, Status.DUPLICATE)
        assert bool(one.diff) or not ran
        assert ran == ("training" in one.costs)
    assert (folder / "mlruns" / "campaigns" / campaign.id / "best_so_far.png").stat().st_size > 1000


def test_the_printed_table_says_what_the_memory_says(finished):
    _, printed, _, experiments = finished
    table = printed[printed.index("campaign embedded-") :]
    for one in experiments:
        # by its status too: words of a long edit may begin a line with a number
        row = re.search(rf"^\s*{one.index}\s+({'|'.join(Status)})\s+(\S+)", table, re.MULTILINE)
        assert row is not None, table
        assert row[1] == one.status.value
        shown = f"{one.value:.4f}" if one.value is not None else f"~{one.estimate:.4f}" if one.estimate else "-"
        assert row[2] == shown


def test_mlflow_says_what_the_memory_says(finished):
    from mlflow import MlflowClient

    folder, _, campaign, experiments = finished
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    groups = [group.experiment_id for group in client.search_experiments()]
    runs = client.search_runs(groups, f"tags.campaign = '{campaign.id}'")
    parents = [run for run in runs if run.data.tags["kind"] == "campaign"]
    assert [run.info.status for run in parents] == ["FINISHED"]
    nested = {int(run.data.tags["index"]): run for run in runs if run.data.tags["kind"] == "experiment"}
    assert sorted(nested) == [one.index for one in experiments]
    for one in experiments:
        run = nested[one.index]
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert run.data.tags["status"] == one.status.value
        assert run.data.metrics.get("val_bpb") == one.value
        assert run.data.metrics.get("reward") == one.reward
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert "record.json" in names
        assert ("diff.patch" in names) == bool(one.diff)
        assert ("curve.json" in names) == bool(one.reports)


def test_the_policy_learns_in_batches_and_its_checkpoints_are_on_disk(finished):
    folder, _, campaign, experiments = finished
    updated = [one.index for one in experiments if "update" in one.extra]
    assert updated == [2, 4]
    assert experiments[-1].policy_step == 2
    assert 0 <= experiments[4].extra["update"]["proposals_new"] <= 1
    checkpoints = sorted(path.name for path in (folder / "mlruns" / "campaigns" / campaign.id / "policy").iterdir())
    assert checkpoints == ["step_000001", "step_000002"]


def test_a_campaign_goes_on_where_it_ended(finished):
    folder, _, campaign, before = finished
    done = run_campaign(folder, "--resume", campaign.id, "--iterations", "5")
    assert done.returncode == 0, done.stderr
    after = Memory(folder / "mlruns" / "memory.duckdb", read_only=True).experiments(campaign.id)
    assert [one.index for one in after] == [0, 1, 2, 3, 4, 5]
    assert after[:5] == before
    assert after[5].policy_step == 2


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["--iterations", "1"], {"policy.clop": 1}, "unknown setting 'policy.clop'; did you mean policy.clip"),
        (["--iterations", "1"], {"source": "target/nothing.py"}, "cannot read the target"),
        (["--iterations", "1"], {"target.DEEPTH": 3}, "DEEPTH"),
        (["--resume", "nobody", "--iterations", "1"], {}, "nobody"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, words, settings, message):
    if "--resume" in words:
        Memory(tmp_path / "mlruns" / "memory.duckdb").close()
    done = run_campaign(tmp_path, *words, **settings)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_an_unknown_preset_is_one_clear_line():
    command = [sys.executable, "-m", "flows.research", "--preset", "embeded"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: unknown preset 'embeded'; there are: {', '.join(preset_names())}"


def test_a_second_campaign_on_the_same_memory_is_refused(tmp_path):
    memory = tmp_path / "mlruns" / "memory.duckdb"
    with campaign_lock(memory):
        done = run_campaign(tmp_path, "--iterations", "1")
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr
    assert "is running on" in done.stderr


def test_a_corrupt_memory_is_refused_and_left_as_it_is(tmp_path):
    memory = tmp_path / "mlruns" / "memory.duckdb"
    memory.parent.mkdir()
    memory.write_bytes(b"not a database" * 1000)
    done = run_campaign(tmp_path, "--iterations", "1")
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert memory.read_bytes() == b"not a database" * 1000


def test_missing_data_name_their_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("ARL_DATA", str(tmp_path / "empty"))
    done = run_campaign(tmp_path, "--iterations", "1")
    assert done.returncode == 1
    assert "make data" in done.stderr


def test_records_of_a_campaign_survive_json(finished):
    _, _, campaign, experiments = finished
    assert Campaign.from_json(campaign.to_json()) == campaign
    assert [Experiment.from_json(one.to_json()) for one in experiments] == experiments
