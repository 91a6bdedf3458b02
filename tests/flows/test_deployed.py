"""The deployments of prefect.yaml as docs/operations.md starts them: a real server, a real worker, `prefect` commands.

Minutes, and at the mercy of a busy machine: `python -m pytest tests/flows/test_deployed.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from arl_core.memory import Memory
from bench.cluster import Cluster, cluster, free_port
from frozen_env.runtime import processes
from tests.flows.test_campaign import QUICK

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
LIMIT_S = 1200.0
ENDLESS = 1000  # experiments: more than any test waits for


class Deployed:
    """A server with the deployments of prefect.yaml on it, and a worker for the campaigns."""

    def __init__(self, server: Cluster) -> None:
        self.server = server
        self.environment = server.environment | {"ARL_ROOT": str(ROOT), "COLUMNS": "400", "OMP_NUM_THREADS": "1"}
        for pool in ("research", "nodes"):
            self.prefect("work-pool", "create", pool, "--type", "process")
        self.prefect("--no-prompt", "deploy", "--all")
        server.start_worker("campaigns", slots=None, pool="research")  # no limit: docs/operations.md says why

    def prefect(self, *words: str) -> str:
        """Run a `prefect` command and return what it prints."""
        command = [sys.executable, "-m", "prefect", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, **parameters: Any) -> str:
        """`prefect deployment run`; return the flow run's id."""
        words = [word for key, value in parameters.items() for word in ("--param", f"{key}={json.dumps(value)}")]
        printed = self.prefect("deployment", "run", name, *words)
        found = re.search(r"UUID: (\S+)", printed)
        assert found, printed
        return found[1]

    def state(self, flow_run: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.server.url}/flow_runs/{flow_run}", timeout=30)
        return answer.raise_for_status().json()["state"]

    def wait_for(self, flow_run: str, *kinds: str) -> dict[str, Any]:
        """Wait until a flow run is in one of these states and return it."""
        wait_until(lambda: self.state(flow_run)["type"] in kinds, lambda: f"{self.state(flow_run)}, wanted {kinds}")
        return self.state(flow_run)

    def process_of(self, flow_run: str) -> int:
        """The process that the worker runs a flow run in."""
        for pid in processes.descendants(self.server.workers["campaigns"].pid):
            with contextlib.suppress(OSError):
                if f"PREFECT__FLOW_RUN_ID={flow_run}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    return pid
        raise AssertionError(f"no process of flow run {flow_run}")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Iterator[Deployed]:
    with cluster(tmp_path_factory.mktemp("deployed")) as server:
        yield Deployed(server)


def settings_in(folder: Path, **changes: Any) -> dict[str, Any]:
    """Parameters of a quick campaign whose memory is in `folder`."""
    quick = QUICK | {"confirm.enabled": False, "memory": str(folder / "mlruns" / "memory.duckdb")}
    return {"iterations": ENDLESS, "settings": quick | changes}


def committed(folder: Path) -> list[int]:
    path = folder / "mlruns" / "memory.duckdb"
    if not path.exists():
        return []
    memory = Memory(path, read_only=True)
    return [one.index for one in memory.experiments("latest")] if memory.campaigns() else []


def wait_until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.1)


def test_a_killed_campaign_is_retried_as_itself_and_a_second_one_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    """Started, met by a second start, killed, retried, cancelled: with the commands of docs/operations.md."""
    mine = deployed.start("research/embedded", **settings_in(tmp_path))
    wait_until(lambda: len(committed(tmp_path)) >= 2, lambda: str(deployed.state(mine)))

    second = deployed.start("research/embedded", **settings_in(tmp_path / "other"))
    refused = deployed.wait_for(second, "CANCELLED", "COMPLETED", "FAILED", "CRASHED")
    assert (refused["type"], refused["message"]) == ("CANCELLED", "Deployment concurrency limit reached."), refused
    assert committed(tmp_path / "other") == []

    os.kill(deployed.process_of(mine), signal.SIGKILL)
    deployed.wait_for(mine, "CRASHED")
    before = committed(tmp_path)
    deployed.prefect("flow-run", "retry", mine)
    wait_until(lambda: len(committed(tmp_path)) >= len(before) + 2, lambda: str(deployed.state(mine)))
    assert deployed.state(mine)["type"] == "RUNNING"

    deployed.prefect("flow-run", "cancel", mine)
    deployed.wait_for(mine, "CANCELLED")
    memory = Memory(tmp_path / "mlruns" / "memory.duckdb")
    wait_until(lambda: memory.get_campaign("latest").status != "running", lambda: "its campaign still runs")
    assert [one.status for one in memory.campaigns()] == ["interrupted"], "its own campaign and no other"
    assert committed(tmp_path) == list(range(len(committed(tmp_path)))), "none lost, none twice"


AWAY_S = 60.0


class MlflowServer:
    """`mlflow server` as docs/operations.md starts it, on a database that survives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.answers, (self.folder / "server.log").read_text)

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    one = MlflowServer(tmp_path / "mlflow")
    one.start()
    yield one
    one.kill()


@pytest.mark.usefixtures("prepared_data")
def test_a_campaign_goes_on_while_prefect_and_mlflow_are_away(
    server: Cluster, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Both are killed for a minute. The campaign commits experiments meanwhile; in the end MLflow has each of them once."""
    experiments = 10
    settings = settings_in(tmp_path, **{"environment.budget_s": 3.0})["settings"]
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "flows.research", "--preset", "embedded", "--iterations", str(experiments), *words]
    environment = server.environment | {"MLFLOW_TRACKING_URI": mlflow_server.url, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "campaign.log"
    with log.open("wb") as out:
        campaign = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
    wait_until(lambda: len(committed(tmp_path)) >= 2, log.read_text)
    server.kill_server()
    mlflow_server.kill()
    before, away_s = len(committed(tmp_path)), time.monotonic()
    wait_until(lambda: len(committed(tmp_path)) > before and time.monotonic() > away_s + AWAY_S, log.read_text)
    assert campaign.poll() is None, log.read_text()
    server.start_server()
    mlflow_server.start()
    assert campaign.wait(timeout=LIMIT_S) == 0, log.read_text()
    assert committed(tmp_path) == list(range(experiments + 1))
    client = MlflowClient(tracking_uri=mlflow_server.url)
    groups = [group.experiment_id for group in client.search_experiments()]
    runs = client.search_runs(groups, "tags.kind = 'experiment'", max_results=1000)
    assert sorted(int(run.data.tags["index"]) for run in runs) == list(range(experiments + 1))
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
    (whole,) = client.search_runs(groups, "tags.kind = 'campaign'")
    assert whole.info.status == "FINISHED"
