"""MLflow shows what the memory holds, once, whatever happened in between."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arl_core import memory as memory_module
from arl_core.edit import canonical_diff
from arl_core.records import Campaign, Experiment, State
from arl_core.selfeval.curve import thin
from frozen_env.contract import Cause, Report, Status, Verdict
from tasks import track as module
from tasks import track_rows
from tasks.track import Tracking, open_tracking, prepare, sync_campaign, sync_checkpoint, sync_experiment

SEED = "MUON_LR = 2e-3\nDEPTH = 4\n\n\ndef build_model():\n    return None\n"
EDITED = SEED.replace("2e-3", "2.8e-3")
STARTED = "2026-11-23T03:00:00.000+00:00"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """One store for all tests (making one takes seconds); each test has a campaign of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("mlruns")
        prepare(folder).join()
        yield open_tracking(folder)


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    name = f"embedded-{request.node.name}"
    return Campaign(name, "embedded", {"seed": 1, "policy": {"lora_r": 8}}, "digest", 1, STARTED, "language_model")


def experiment(campaign: Campaign, index: int = 1, **fields: Any) -> Experiment:
    known: dict[str, Any] = {
        "status": Status.KEPT,
        "parent_index": 0,
        "summary": "MUON_LR: 2e-3 → 2.8e-3",
        "diff": canonical_diff(SEED, EDITED),
        "source": EDITED,
        "source_hash": "abc",
        "metric": "val_bpb",
        "value": 1.4,
        "incumbent_value": 1.5,
        "reward": 0.5,
        "reward_terms": {"gain": 0.5, "reward": 0.5},
        "reports": tuple(Report(k, k / 10, k / 400, 4 - k / 400, 1e-3) for k in range(1, 401)),
        "verdicts": (Verdict(False, "go on", "ours", 0.5, 1.45, 1.4, 1.5, 0.7, 1.5),),
        "prompt": "the prompt",
        "completion": "the completion",
        "log": "tail of the log",
        "costs": {"training": 20.0, "iteration": 30.0},
        "peak_memory_mb": 100.0,
        "tokens": 10_000,
        "sandbox": "sandlock",
        "created_at": "2026-11-23T04:00:00.000+00:00",
    }
    return Experiment(campaign.id, index, **(known | fields))


def runs_of(tracking: Tracking, campaign: Campaign) -> list[Any]:
    found = tracking.client.search_runs([tracking.experiment_id], f"tags.campaign = '{campaign.id}'")
    return sorted(found, key=lambda run: run.info.run_name)


def reopened(tracking: Tracking) -> Tracking:
    """The same store as after a restart: nothing is remembered."""
    return Tracking(tracking.client, tracking.uri, tracking.experiment_id)


def text_of(tracking: Tracking, run_id: str, name: str) -> str:
    return Path(tracking.client.download_artifacts(run_id, name)).read_text(encoding="utf-8")


def test_an_experiment_is_a_readable_run_nested_in_its_campaign(tracking: Tracking, campaign: Campaign) -> None:
    run_id = sync_experiment(tracking, campaign, experiment(campaign))
    nested, parent = runs_of(tracking, campaign)
    assert nested.info.run_id == run_id
    assert nested.info.run_name == "0001 MUON_LR: 2e-3 → 2.8e-3"
    assert nested.info.status == "FINISHED"
    assert nested.info.end_time - nested.info.start_time == 30_000
    assert nested.data.params == {"levers": "MUON_LR", "MUON_LR": "0.0028", "DEPTH": "4"}
    expected = {"val_bpb": 1.4, "val_bpb_incumbent": 1.5, "reward": 0.5, "reward/gain": 0.5, "seconds/training": 20.0}
    assert expected.items() <= nested.data.metrics.items()
    tags = {"status": "kept", "parent_experiment": "0", "sandbox": "sandlock", "confirmed": "no", "source_hash": "abc"}
    assert tags.items() <= nested.data.tags.items()
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.run_name == campaign.id
    assert parent.data.params == {"seed": "1", "policy.lora_r": "8"}
    assert {"best_val_bpb": 1.4, "val_bpb": 1.4, "reward": 0.5}.items() <= parent.data.metrics.items()


def test_its_artifacts_are_the_texts_of_the_record(tracking: Tracking, campaign: Campaign) -> None:
    given = experiment(campaign)
    run_id = sync_experiment(tracking, campaign, given)
    names = {item.path for item in tracking.client.list_artifacts(run_id)}
    assert names == {
        *("diff.patch", "train.py", "prompt.txt", "completion.txt", "log.txt"),
        *("forecast.json", "curve.json", "record.json"),
    }
    assert text_of(tracking, run_id, "diff.patch") == given.diff
    assert text_of(tracking, run_id, "train.py") == EDITED
    assert text_of(tracking, run_id, "log.txt") == "tail of the log"
    artifacts = Path(tracking.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    assert "mlruns" in artifacts.parts[-4], "artifacts lie beside the database"


def test_a_curve_is_thinned_to_its_ends_and_even_steps(tracking: Tracking, campaign: Campaign) -> None:
    run_id = sync_experiment(tracking, campaign, experiment(campaign))
    history = tracking.client.get_metric_history(run_id, "train_loss")
    steps = [point.step for point in sorted(history, key=lambda point: point.step)]
    assert (len(steps), steps[0], steps[-1]) == (track_rows.CURVE_POINTS, 1, 400)
    assert [p.value for p in tracking.client.get_metric_history(run_id, "forecast")] == [1.45]
    few = [Report(k, k, k, k) for k in range(3)]
    assert thin(few, 3) == few
    assert thin([], 3) == []


def test_syncing_again_changes_nothing(tracking: Tracking, campaign: Campaign) -> None:
    first = sync_experiment(tracking, campaign, experiment(campaign))
    after_a_restart = reopened(tracking)
    assert sync_experiment(after_a_restart, campaign, experiment(campaign)) == first
    assert sync_campaign(after_a_restart, campaign, [experiment(campaign)])
    assert len(runs_of(tracking, campaign)) == 2
    assert len(tracking.client.get_metric_history(first, "train_loss")) == track_rows.CURVE_POINTS


@pytest.mark.parametrize("step", ["log_batch", "log_artifacts", "set_terminated"])
def test_a_run_cut_off_halfway_is_completed(
    tracking: Tracking, campaign: Campaign, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    sync_campaign(tracking, campaign)
    with monkeypatch.context() as cut:
        cut.setattr(LocalArtifactRepository if step == "log_artifacts" else tracking.client, step, killed)
        with pytest.raises(KeyboardInterrupt):
            sync_experiment(tracking, campaign, experiment(campaign))
    run_id = sync_experiment(reopened(tracking), campaign, experiment(campaign))
    nested, _ = runs_of(tracking, campaign)
    assert nested.info.run_id == run_id
    assert nested.info.status == "FINISHED"
    assert len(tracking.client.get_metric_history(run_id, "train_loss")) == track_rows.CURVE_POINTS
    assert len(tracking.client.list_artifacts(run_id)) == 8


@pytest.mark.parametrize(
    ("status", "shown"),
    [(Status.DISCARDED, "FINISHED"), (Status.STOPPED_EARLY, "KILLED"), (Status.CRASHED, "FAILED")],
)
def test_the_colour_of_a_run_tells_how_it_ended(
    tracking: Tracking, campaign: Campaign, status: Status, shown: str
) -> None:
    sync_experiment(tracking, campaign, experiment(campaign, status=status))
    assert runs_of(tracking, campaign)[0].info.status == shown


def test_a_bare_or_hostile_record_is_shown_too(tracking: Tracking, campaign: Campaign) -> None:
    bare = Experiment(campaign.id, 1, Status.REJECTED, reason="syntax\n\x1b[2J" + "x" * 9000)
    hostile = experiment(
        campaign,
        2,
        value=math.nan,
        source="A" * 300 + " = 1\n" + "".join(f"C{k} = {k}\n" for k in range(200)),
        reports=(Report(1, 0.1, 0.1, math.nan), Report(2, 0.2, 0.2, math.inf)),
        reward_terms={"<b>": 1.0},
        summary="<script>\n" * 100,
        log="\ud800\0",
    )
    sync_campaign(tracking, campaign, [bare, hostile])
    first, second, _ = runs_of(tracking, campaign)
    assert "\x1b" not in first.data.tags["reason"]
    assert len(second.data.params) == module.MAX_PARAMS
    assert "reward/_b_" in second.data.metrics
    assert "\n" not in second.info.run_name


def test_a_campaign_is_brought_in_line_with_its_memory(tracking: Tracking, campaign: Campaign) -> None:
    worse = experiment(campaign, 2, status=Status.DISCARDED, value=1.6, incumbent_value=1.4)
    sync_experiment(tracking, campaign, experiment(campaign, 1))
    sync_campaign(tracking, dataclasses.replace(campaign, status="interrupted"), [experiment(campaign, 1), worse])
    *nested, parent = runs_of(tracking, campaign)
    assert [run.info.run_name[:4] for run in nested] == ["0001", "0002"]
    assert parent.info.status == "KILLED"
    best = tracking.client.get_metric_history(parent.info.run_id, "best_val_bpb")
    assert [(point.step, point.value) for point in best] == [(1, 1.4), (2, 1.4)]
    sync_campaign(tracking, campaign)
    assert runs_of(tracking, campaign)[-1].info.status == "RUNNING"


def test_a_kept_experiment_that_is_found_out_later_is_no_best_in_mlflow_either(
    tracking: Tracking, campaign: Campaign
) -> None:
    kept = experiment(campaign, 1, confirmed_value=1.41, confirmations=4)
    sync_campaign(tracking, campaign, [kept])
    lost = {"status": Status.REJECTED, "cause": Cause.LOOKAHEAD, "reason": "was kept, then found out"}
    sync_campaign(
        tracking, campaign, [dataclasses.replace(kept, **lost, value=None, confirmed_value=None, confirmations=0)]
    )
    run, _ = runs_of(tracking, campaign)
    assert run.info.status == "FAILED"
    told = {name: run.data.tags[name] for name in ("status", "cause", "reason", "confirmed")}
    assert math.isnan(run.data.metrics["val_bpb"]), "it sorts behind every number"
    assert math.isnan(run.data.metrics["val_bpb_confirmed"])
    assert run.data.metrics["confirmations"] == 0
    assert told == {"status": "rejected", "cause": "lookahead", "reason": "was kept, then found out", "confirmed": "no"}


def test_only_the_last_checkpoint_is_kept(tracking: Tracking, campaign: Campaign, tmp_path: Path) -> None:
    for name in ("step_000001", "step_000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.safetensors").write_bytes(b"weights")
        (tmp_path / name / "manifest.json").write_text(name)
        sync_checkpoint(tracking, campaign, tmp_path / name)
        sync_checkpoint(tracking, campaign, tmp_path / name)
    run_id = sync_campaign(tracking, campaign)
    assert [item.path for item in tracking.client.list_artifacts(run_id, "policy")] == ["policy/step_000002"]


@pytest.mark.parametrize("there", ["cut short", "of another"])
def test_a_checkpoint_is_uploaded_again_unless_this_very_one_is_there(
    tracking: Tracking, campaign: Campaign, tmp_path: Path, there: str
) -> None:
    folder = tmp_path / "step_000001"
    folder.mkdir()
    (folder / "policy.safetensors").write_bytes(b"torn")
    if there == "of another":
        (folder / "manifest.json").write_text("its hashes")
        (folder / "recent_000.npz").write_bytes(b"a rollout that is no more")
    sync_checkpoint(tracking, campaign, folder)
    (folder / "recent_000.npz").unlink(missing_ok=True)
    (folder / "policy.safetensors").write_bytes(b"whole")
    (folder / "manifest.json").write_text("hashes")
    sync_checkpoint(tracking, campaign, folder)
    run_id = sync_campaign(tracking, campaign)
    files = [item.path for item in tracking.client.list_artifacts(run_id, "policy/step_000001")]
    assert sorted(files) == ["policy/step_000001/manifest.json", "policy/step_000001/policy.safetensors"]
    assert text_of(tracking, run_id, "policy/step_000001/policy.safetensors") == "whole"


def test_what_is_made_up_for_of_a_retired_experiment_has_no_artifacts(tracking: Tracking, campaign: Campaign) -> None:
    sync_campaign(tracking, campaign, [experiment(campaign, index) for index in (1, 2)], lambda index: index == 1)
    found = {run.data.tags["index"]: run for run in runs_of(tracking, campaign)[:-1]}
    artifacts = {index: len(tracking.client.list_artifacts(run.info.run_id)) for index, run in found.items()}
    assert artifacts["1"] == 0
    assert artifacts["2"] > 0
    assert "removed" in found["1"].data.tags["artifacts"]
    assert found["1"].info.status == "FINISHED"


def test_the_log_file_of_the_run_is_taken_when_it_is_there(
    tracking: Tracking, campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track_rows, "LOG_BYTES", 12)
    (tmp_path / "log.txt").write_text("much\n" * 10 + "the end")
    run_id = sync_experiment(tracking, campaign, experiment(campaign), tmp_path)
    assert text_of(tracking, run_id, "log.txt") == "much\nthe end"


def test_a_campaign_is_made_up_for_from_the_memory_page_by_page(
    tracking: Tracking, campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "PAGE", 2)
    memory = memory_module.Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(campaign)
    for index in range(5):
        memory.commit_iteration(experiment(campaign, index), State())
    sync_experiment(tracking, campaign, experiment(campaign, 3))
    monkeypatch.setattr(module, "open_tracking", lambda _: reopened(tracking))
    module.track_campaign.fn(dataclasses.replace(campaign, status="finished"), tmp_path, memory)
    *nested, parent = runs_of(tracking, campaign)
    assert [run.data.tags["index"] for run in nested] == ["0", "1", "2", "3", "4"]
    assert {run.info.status for run in (*nested, parent)} == {"FINISHED"}


def test_mlflow_keeps_no_artifact_store_per_experiment(tracking: Tracking, campaign: Campaign) -> None:
    """Its client would keep a thousand, each with its queue and thread pool."""
    from mlflow.tracking._tracking_service import utils

    before = len(utils._artifact_repos_cache)
    run_id = sync_experiment(tracking, campaign, experiment(campaign))
    module.sync_retirement(tracking, campaign, 1)
    assert len(utils._artifact_repos_cache) == before
    assert tracking.client.list_artifacts(run_id) == []


def test_a_store_that_fails_costs_a_warning_and_no_campaign(
    campaign: Campaign, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "open_tracking", refuse)
    module.track.fn(campaign, experiment(campaign), tmp_path / "campaigns" / "c")
    module.track_campaign.fn(campaign, tmp_path / "campaigns" / "c")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.usefixtures("tracking")
def test_the_list_of_experiments_is_best_first(tmp_path: Path) -> None:
    page = module.runs_page("http://127.0.0.1:5000", tmp_path)
    assert page.startswith("http://127.0.0.1:5000/#/experiments/")
    assert "orderByKey=metrics.%60val_bpb%60&orderByAsc=true" in page


@pytest.mark.usefixtures("tracking")
def test_a_database_is_never_seen_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def migrate_and_die(tracking_uri: str) -> None:
        Path(tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.MlflowClient", migrate_and_die)
    with pytest.raises(KeyboardInterrupt):
        module._create_database(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_single_and_confirmed_values_are_told_apart(tracking: Tracking, campaign: Campaign) -> None:
    told = {"confirmation": {"gain": 0.1, "p": 0.001, "runs": 5, "noise_sd": 0.02}}
    kept = experiment(campaign, 1, confirmed_value=1.42, confirmations=4, extra=told)
    refuted = experiment(campaign, 2, status=Status.DISCARDED, confirmed_value=1.52, confirmations=3, extra=told)
    single = experiment(campaign, 3, status=Status.DISCARDED)
    runs = [tracking.client.get_run(sync_experiment(tracking, campaign, one)) for one in (kept, refuted, single)]
    assert [run.data.tags["confirmed"] for run in runs] == ["4 runs", "no, 3 re-runs", "no"]
    assert [run.data.metrics.get("val_bpb_confirmed") for run in runs] == [1.42, 1.52, None]
    assert {run.data.metrics["val_bpb"] for run in runs} == {1.4}
    assert (runs[0].data.metrics["confirm/gain"], runs[0].data.metrics["confirm/runs"]) == (0.1, 5)
    parent = tracking.client.get_run(sync_campaign(tracking, campaign))
    history = tracking.client.get_metric_history(parent.info.run_id, "best_val_bpb")
    assert {point.step: point.value for point in history} == {1: 1.42, 2: 1.5, 3: 1.5}


def test_the_campaigns_best_is_the_incumbent_after_the_commit_not_that_of_the_proposal(campaign: Campaign) -> None:
    late = experiment(campaign, 3, status=Status.DISCARDED, incumbent_value=1.5, extra={"best_after": 1.3})
    assert dict(point[:2] for point in track_rows.campaign_metrics_of(late))["best_val_bpb"] == 1.3


def test_an_incumbents_further_runs_reach_a_run_that_was_whole(tracking: Tracking, campaign: Campaign) -> None:
    kept = experiment(campaign, 1, confirmed_value=1.42, confirmations=4)
    run_id = sync_experiment(tracking, campaign, kept)
    grown = dataclasses.replace(kept, confirmed_value=1.43, confirmations=6)
    sync_campaign(tracking, campaign, [grown])
    run = tracking.client.get_run(run_id)
    assert (run.data.tags["confirmed"], run.data.metrics["val_bpb_confirmed"]) == ("6 runs", 1.43)
    assert (run.data.metrics["confirmations"], run.info.status) == (6, "FINISHED")
