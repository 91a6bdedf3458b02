"""MLflow, brought in line from the memory: a parent run per campaign, a nested run per experiment.

The memory is the truth and MLflow its picture. Every function here can be called again after a crash: runs are found
by their tags, what is half-written is completed, what is whole is left alone. Speaks through MlflowClient in few calls
(one log_batch per experiment), because a call is a transaction; mlflow itself takes seconds to import, so it is
imported when first needed, in the background if prepare() was called.

MLFLOW_TRACKING_URI, if set, names a server to use instead of `mlflow.db` in the runs' folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from arl_core.config import flat
from arl_core.edit import read_constants
from arl_core.records import Campaign, Experiment, finite_json, one_line, utc_now
from frozen_env.contract import Status
from frozen_env.description import Description, built_in
from tasks import ONCE
from tasks.track_rows import (
    SETTLED,
    Point,
    campaign_metrics_of,
    confirmed_key,
    metrics_of,
    milliseconds,
    settled_tags,
    started_ms,
    tags_of,
    write_artifacts,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from arl_core.memory import Memory

log = logging.getLogger(__name__)

EXPERIMENT = "autoresearch-rl"  # MLflow's word for a group of runs
BATCH = 900  # metrics of one request; a server takes 1000 entries in all
MAX_PARAMS = 90
_NOT_A_KEY = re.compile(r"[^\w\-. :/]")

# How a run's status shows in MLflow's list: green, red, grey
_RUN_STATUS = {
    Status.KEPT: "FINISHED",
    Status.DISCARDED: "FINISHED",
    Status.STOPPED_EARLY: "KILLED",
    Status.CRASHED: "FAILED",
    Status.TIMED_OUT: "FAILED",
    Status.REJECTED: "FAILED",
    Status.DUPLICATE: "FAILED",
}
REMOVED = ("artifacts", "removed; the memory has them")  # a tag
LAST = "manifest.json"  # of a policy checkpoint's files
_CAMPAIGN_STATUS = {"running": "RUNNING", "finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


@dataclass
class Tracking:
    """An open MLflow store. `runs` remembers run ids by (campaign, index); index -1 is the campaign's own run."""

    client: MlflowClient
    uri: str
    experiment_id: str
    runs: dict[tuple[str, int], str] = field(default_factory=dict)


_opened: dict[str, Tracking] = {}
_opening = threading.Lock()


def open_tracking(folder: str | Path) -> Tracking:
    """Open MLflow's store in `folder` (or the server of MLFLOW_TRACKING_URI), creating it when missing.

    Later calls return the same. The first takes about two seconds of import, and two more when the database is new.
    """
    folder = Path(folder).resolve()
    with _opening:
        uri = _uri(folder)
        if uri not in _opened:
            _opened[uri] = _open(folder, uri)
        return _opened[uri]


def is_open(folder: str | Path) -> bool:
    """Whether open_tracking() has finished here: what it takes otherwise is seconds."""
    return _uri(Path(folder).resolve()) in _opened


def prepare(folder: str | Path) -> threading.Thread:
    """Begin open_tracking() in the background, so that the first experiment need not wait for it."""

    def attempt() -> None:
        try:
            open_tracking(folder)
        except Exception as error:  # told by whoever opens it in earnest
            log.debug("tracking could not be prepared: %s", error)

    thread = threading.Thread(target=attempt, name="prepare-tracking", daemon=True)
    thread.start()
    return thread


def sync_experiment(
    tracking: Tracking,
    campaign: Campaign,
    experiment: Experiment,
    folder: str | Path | None = None,
    *,
    artifacts: bool = True,
) -> str:
    """Bring the run of one experiment in line with its record and return its id. Nothing happens when it is whole.

    `folder` is the experiment's own: its log.txt is taken instead of the record's tail when it is there. Without
    `artifacts` the run gets none, as if they had been removed by now (sync_retirement).
    """
    client = tracking.client
    run = _experiment_run(tracking, campaign, experiment)
    run_id = str(run.info.run_id)
    if run.info.status != "RUNNING":
        return run_id
    metrics, tags = metrics_of(experiment), tags_of(experiment)
    touched = {"levers": tags["levers"]} if tags["levers"] else {}
    first = _entities(metrics[:BATCH], touched | read_constants(experiment.source), tags)
    client.log_batch(run_id, **first)
    for start in range(BATCH, len(metrics), BATCH):
        client.log_batch(run_id, metrics=_entities(metrics[start : start + BATCH], {}, {})["metrics"])
    if artifacts:
        with tempfile.TemporaryDirectory(prefix="artifacts-") as scratch:
            write_artifacts(experiment, Path(scratch), Path(folder) if folder else None)
            _artifacts(tracking, run).log_artifacts(scratch)
    else:
        client.set_tag(run_id, *REMOVED)
    parent = _entities(campaign_metrics_of(experiment), {}, {})["metrics"]
    client.log_batch(_campaign_run(tracking, campaign), metrics=parent)
    # After all else, and so the sign that a run is whole: one that still runs is done over.
    client.set_terminated(run_id, _RUN_STATUS[experiment.status], end_time=milliseconds(experiment.created_at))
    return run_id


def sync_campaign(
    tracking: Tracking,
    campaign: Campaign,
    experiments: Iterable[Experiment] = (),
    retired: Callable[[int], bool] = lambda _: False,
) -> str:
    """Bring a whole campaign in line: its own run and its status, and every experiment given. Returns its run's id.

    What is made up for of a `retired` experiment comes without artifacts.
    """
    run_id = _campaign_run(tracking, campaign)
    whole: dict[int, tuple[str, dict[str, str]]] | None = None
    for experiment in experiments:
        whole = _complete(tracking, campaign) if whole is None else whole
        if experiment.index not in whole:
            sync_experiment(tracking, campaign, experiment, artifacts=not retired(experiment.index))
        elif whole[experiment.index][1] != settled_tags(experiment):
            _refresh(tracking, experiment, whole[experiment.index][0])
    status = _CAMPAIGN_STATUS.get(campaign.status, "RUNNING")
    if status == "RUNNING":
        tracking.client.update_run(run_id, status=status)
    else:
        tracking.client.set_terminated(run_id, status)
    return run_id


def sync_checkpoint(tracking: Tracking, campaign: Campaign, checkpoint: str | Path) -> None:
    """Keep a policy checkpoint with the campaign's run, under policy/NAME, and drop the ones before it."""
    checkpoint = Path(checkpoint)
    repository = _artifacts(tracking, tracking.client.get_run(_campaign_run(tracking, campaign)))
    place, before = f"policy/{checkpoint.name}", {Path(item.path).name for item in repository.list_artifacts("policy")}
    if not _holds(repository, place, checkpoint / LAST):
        if checkpoint.name in before:  # an upload that was cut short, or another one's under this name
            repository.delete_artifacts(place)
        for file in sorted(checkpoint.iterdir(), key=lambda file: file.name == LAST):
            repository.log_artifact(str(file), place)
    for name in before - {checkpoint.name}:
        repository.delete_artifacts(f"policy/{name}")


def _holds(repository: ArtifactRepository, place: str, file: Path) -> bool:
    """Whether this very file is there: the manifest is the last of a checkpoint that is uploaded, and names all others' hashes."""
    if f"{place}/{file.name}" not in {item.path for item in repository.list_artifacts(place)}:
        return False
    with tempfile.TemporaryDirectory(prefix="manifest-") as scratch:
        there = repository.download_artifacts(f"{place}/{file.name}", scratch)
        return Path(there).read_bytes() == file.read_bytes()


def sync_retirement(tracking: Tracking, campaign: Campaign, index: int) -> None:
    """Remove the artifacts of an experiment's run; its metrics and tags stay. Done twice it does nothing."""
    run = _find(tracking, campaign.id, "experiment", index)
    tracking.runs.pop((campaign.id, index), None)
    if run is None or "artifacts" in run.data.tags:
        return
    repository = _artifacts(tracking, run)
    for item in repository.list_artifacts():
        repository.delete_artifacts(item.path)
    tracking.client.set_tag(run.info.run_id, *REMOVED)


def _artifacts(tracking: Tracking, run: Run) -> ArtifactRepository:
    """Where a run's files are. MLflow's own client would keep a thousand of these, each with its queue and threads."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking.uri)


# --- opening ----------------------------------------------------------------------------------------------------------


def _uri(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"


def _open(folder: Path, uri: str) -> Tracking:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*noload.*")  # mlflow's use of sqlalchemy, nothing that we could mend
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    local = uri.startswith("sqlite:///")
    if local:
        _create_database(Path(uri.removeprefix("sqlite:///")))
    client = MlflowClient(tracking_uri=uri)
    group = client.get_experiment_by_name(EXPERIMENT)
    if group is not None:
        return Tracking(client, uri, group.experiment_id)
    place = (folder / "artifacts").as_uri() if local else None
    try:
        return Tracking(client, uri, client.create_experiment(EXPERIMENT, artifact_location=place))
    except MlflowException:  # another process was faster
        return Tracking(client, uri, client.get_experiment_by_name(EXPERIMENT).experiment_id)


def _create_database(path: Path) -> None:
    """Make the database aside and link it into place: killed halfway through its migrations, it would open no more."""
    from mlflow import MlflowClient

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.new")
    partial.unlink(missing_ok=True)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
        os.link(partial, path)
    except FileExistsError:  # another process was faster; its database is as good
        pass
    finally:
        partial.unlink(missing_ok=True)


def runs_page(address: str, folder: str | Path, problem: Description | None = None) -> str:
    """Return the address of MLflow's list of all experiments, best first by the metric of a problem (default: built-in)."""
    problem = problem or built_in()
    query = {
        "searchFilter": "tags.kind = 'experiment'",
        "orderByKey": f"metrics.`{problem.metric}`",
        "orderByAsc": str(problem.direction == "lower").lower(),
        "startTime": "ALL",
    }
    words = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    return f"{address}/#/experiments/{open_tracking(folder).experiment_id}/runs?{words}"


# --- runs -------------------------------------------------------------------------------------------------------------


def _campaign_run(tracking: Tracking, campaign: Campaign) -> str:
    """Return the id of the campaign's own run, creating it with its settings when there is none."""
    key = (campaign.id, -1)
    if key not in tracking.runs:
        run = _find(tracking, campaign.id, "campaign")
        if run is None:
            tags = {"campaign": campaign.id, "kind": "campaign", "preset": campaign.preset, "problem": campaign.problem}
            tags |= {"environment_digest": campaign.environment_digest, "seed": str(campaign.seed)}
            started = milliseconds(campaign.started_at)
            run = tracking.client.create_run(tracking.experiment_id, started, tags, run_name=campaign.id)
        settings = flat(finite_json(campaign.config))
        tracking.client.log_batch(run.info.run_id, params=_entities([], settings, {})["params"])
        tracking.runs[key] = str(run.info.run_id)
    return tracking.runs[key]


def _experiment_run(tracking: Tracking, campaign: Campaign, experiment: Experiment) -> Run:
    key = (campaign.id, experiment.index)
    if key in tracking.runs:
        return tracking.client.get_run(tracking.runs[key])
    parent = _campaign_run(tracking, campaign)
    run = _find(tracking, campaign.id, "experiment", experiment.index)
    if run is None:
        tags = {"campaign": campaign.id, "kind": "experiment", "index": str(experiment.index)}
        tags["mlflow.parentRunId"] = parent
        name = f"{experiment.index:04d} {one_line(experiment.summary or experiment.reason, 80)}".strip()
        run = tracking.client.create_run(tracking.experiment_id, started_ms(experiment), tags, run_name=name)
    tracking.runs[key] = str(run.info.run_id)
    return run


def _find(tracking: Tracking, campaign_id: str, kind: str, index: int | None = None) -> Run | None:
    query = f"tags.campaign = '{campaign_id}' and tags.kind = '{kind}'"
    if index is not None:
        query += f" and tags.index = '{index}'"
    return next(iter(tracking.client.search_runs([tracking.experiment_id], query, max_results=1)), None)


def _refresh(tracking: Tracking, experiment: Experiment, run_id: str) -> None:
    """An incumbent is run on further seeds when a candidate needs the pair: its mean is over more runs than before, or it
    was found out and is the incumbent no more. MLflow forgets no metric; not a number sorts behind every number."""
    confirmed = confirmed_key(experiment)
    points = [point for point in metrics_of(experiment) if point[0] in (confirmed, "confirmations")]
    if experiment.value is None:
        now = milliseconds(utc_now())  # later than what it takes the place of
        points = [(experiment.metric or "value", math.nan, now, 0), (confirmed, math.nan, now, 0)]
        points.append(("confirmations", 0.0, now, 0))
    tracking.client.log_batch(run_id, **_entities(points, {}, settled_tags(experiment)))
    ended = milliseconds(experiment.created_at)
    tracking.client.set_terminated(run_id, _RUN_STATUS[experiment.status], end_time=ended)


def _complete(tracking: Tracking, campaign: Campaign) -> dict[int, tuple[str, dict[str, str]]]:
    """(run id, those tags that settled_tags() gives) of the runs that are whole, by their experiment's index."""
    query = f"tags.campaign = '{campaign.id}' and tags.kind = 'experiment' and attributes.status != 'RUNNING'"
    found: dict[int, tuple[str, dict[str, str]]] = {}
    page: str | None = None
    while True:
        runs = tracking.client.search_runs([tracking.experiment_id], query, max_results=500, page_token=page)
        for run in runs:
            tags = run.data.tags
            found[int(tags["index"])] = (str(run.info.run_id), {name: tags.get(name, "") for name in SETTLED})
        page = runs.token
        if not page:
            return found


def _entities(metrics: Sequence[Point], params: dict[str, Any], tags: dict[str, str]) -> dict[str, list[Any]]:
    from mlflow.entities import Metric, Param, RunTag

    def metric(key: str, value: float, at: int, step: int) -> Metric:
        return Metric(_NOT_A_KEY.sub("_", key), value, at, step)

    kept = list(params.items())[:MAX_PARAMS]
    return {
        "metrics": [metric(*point) for point in metrics],
        "params": [Param(_NOT_A_KEY.sub("_", key)[:200], one_line(str(value), 500)) for key, value in kept],
        "tags": [RunTag(key, value) for key, value in tags.items()],
    }


# --- tasks ------------------------------------------------------------------------------------------------------------


@task(name="track", **ONCE)
def track(campaign: Campaign, experiment: Experiment, folder: Path) -> None:
    """Show a committed experiment in MLflow. `folder` is the campaign's, two levels below the runs' folder.

    A store that does not answer costs a warning, not the campaign: the next track_campaign() makes up for it.
    """
    try:
        tracking = open_tracking(folder.parent.parent)
        sync_experiment(tracking, campaign, experiment, folder / f"experiment_{experiment.index:05d}")
        if experiment.extra.get("update"):
            checkpoint = folder / "policy" / f"step_{experiment.policy_step:06d}"
            if checkpoint.is_dir():
                sync_checkpoint(tracking, campaign, checkpoint)
    except Exception as error:
        log.warning("MLflow does not have experiment %s yet: %s", experiment.index, one_line(str(error), 200))


@task(name="track-campaign", **ONCE)
def track_campaign(
    campaign: Campaign, folder: Path, memory: Memory | None = None, retired: Callable[[int], bool] = lambda _: False
) -> None:
    """Show a campaign's status in MLflow and, given the memory, make up for what is missing there. Warns like track()."""
    try:
        experiments = memory.each(campaign.id) if memory else ()
        sync_campaign(open_tracking(folder.parent.parent), campaign, experiments, retired)
    except Exception as error:
        log.warning("MLflow is not in line with campaign %s yet: %s", campaign.id, one_line(str(error), 200))


@task(name="drop-artifacts", **ONCE)
def drop_artifacts(campaign: Campaign, index: int, folder: Path) -> bool:
    """Remove what MLflow keeps as files of an old experiment. False, with a warning, when MLflow does not answer."""
    try:
        sync_retirement(open_tracking(folder.parent.parent), campaign, index)
    except Exception as error:
        log.warning("MLflow keeps the artifacts of experiment %s for now: %s", index, one_line(str(error), 200))
        return False
    return True
