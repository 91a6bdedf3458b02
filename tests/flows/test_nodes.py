"""A campaign over three nodes: a real Prefect server, workers as separate processes, one of them killed. Needs no GPU.

Candidates sleep instead of computing, and what trains them is a stand-in; all else is real.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from arl_core.memory import Memory
from arl_core.records import Experiment
from bench.cluster import Cluster
from bench.scaling import SETTINGS
from frozen_env.contract import Cause

ROOT = Path(__file__).resolve().parents[2]
# A server, three workers and a dead one: minutes, and at the mercy of a busy machine's timing. `make test-slow` runs them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
NAMES = ("a", "b", "c")
CANDIDATES = 6
SLEEP_S = 3.0
LIMIT_S = 600.0
AWAY_S = 60.0


@dataclasses.dataclass
class Nodes:
    """Three workers, `a`, `b`, `c`. Their candidates leave a mark while they run, and do not end on a node that holds."""

    server: Cluster
    marks: Path

    def start(self, name: str) -> None:
        (self.marks / name).mkdir(parents=True, exist_ok=True)
        watched = {"ARL_STAND_IN_MARKS": str(self.marks / name), "ARL_STAND_IN_HOLD": str(self.hold(name))}
        # A server that is away for a minute must not end the worker: it gives up after 12 failed looks.
        self.server.start_worker(name, PREFECT_WORKER_QUERY_SECONDS="4", **watched)

    def hold(self, name: str) -> Path:
        """A file: while it is there, candidates on this node do not end."""
        return self.marks / f"hold-{name}"

    def running_on(self, name: str) -> list[str]:
        """Ids of the flow runs whose candidates run on this node now."""
        return [path.name for path in (self.marks / name).iterdir()]

    def runs_of(self, campaign_id: str) -> dict[str, str]:
        """State by name of every flow run of a campaign's candidates."""
        wanted = {"flow_runs": {"tags": {"all_": [f"campaign:{campaign_id}"]}}}
        found = httpx.post(f"{self.server.url}/flow_runs/filter", json=wanted, timeout=30).raise_for_status()
        return {run["name"].removeprefix(f"{campaign_id}-"): run["state"]["type"] for run in found.json()}

    def name_of(self, flow_run: str) -> str:
        return httpx.get(f"{self.server.url}/flow_runs/{flow_run}", timeout=30).raise_for_status().json()["name"]


@pytest.fixture(scope="module")
def nodes(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    server.deploy("bench/sleeping_node.py:experiment")
    found = Nodes(server, tmp_path_factory.mktemp("marks"))
    for name in NAMES:
        found.start(name)
    server.wait_for_workers(3)
    return found


def start_campaign(nodes: Nodes, folder: Path, **settings: object) -> subprocess.Popen[str]:
    chosen = SETTINGS | {
        "memory": str(folder / "mlruns" / "memory.duckdb"),
        "environment.budget_s": SLEEP_S,
        "nodes.silence_s": 30.0,
        "parallel": 3,
        "iterations": CANDIDATES,
        "tracking": False,
        **settings,
    }
    code = f"import json, bench.scaling; bench.scaling.campaign(json.loads({json.dumps(json.dumps(chosen))}))"
    environment = nodes.server.environment | {"OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def experiments_of(folder: Path) -> list[Experiment]:
    path = folder / "mlruns" / "memory.duckdb"
    if not path.exists():
        return []
    memory = Memory(path, read_only=True)
    return memory.experiments("latest") if memory.campaigns() else []


def campaign_of(folder: Path) -> str:
    return Memory(folder / "mlruns" / "memory.duckdb", read_only=True).get_campaign("latest").id


def wait_until(condition: Callable[[], object], what: str, campaign: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert campaign.poll() is None, campaign.communicate()[0]
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def test_a_node_that_dies_costs_no_experiment(nodes: Nodes, tmp_path: Path) -> None:
    """It dies while its candidate runs: the candidate holds until then."""
    nodes.hold("b").touch()
    campaign = start_campaign(nodes, tmp_path)
    wait_until(lambda: nodes.running_on("b"), "no candidate came to run on b", campaign)
    (flow_run,) = nodes.running_on("b")
    victim = nodes.name_of(flow_run)
    nodes.server.kill_worker("b")
    (nodes.marks / "b" / flow_run).unlink()  # the dead cannot
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode == 0, printed
    experiments = experiments_of(tmp_path)
    assert [one.index for one in experiments] == list(range(CANDIDATES + 1)), printed
    index = victim.rsplit("-", 1)[1]
    assert [line for line in printed.splitlines() if "is scheduled again" in line] == [
        f"experiment {index} is scheduled again: its node was silent for 30 s"
    ]
    runs = nodes.runs_of(campaign_of(tmp_path))
    assert runs.pop(f"{index}-attempt-2") == "COMPLETED"
    assert runs.pop(index) == "CANCELLED", "its first run can no longer deliver"
    assert set(runs.values()) == {"COMPLETED"}
    assert not [name for name in runs if "attempt" in name], "no other candidate ran twice"
    assert all(one.cause is not Cause.ABORTED for one in experiments), "no candidate was blamed for its node's death"
    assert all(one.environment_digest == "stand-in" for one in experiments)
    nodes.hold("b").unlink()
    nodes.start("b")
    nodes.server.wait_for_workers(3)


def test_a_server_that_is_away_for_a_minute_costs_no_experiment(nodes: Nodes, tmp_path: Path) -> None:
    """It goes while three candidates run. They end while it is away, and their nodes deliver when it is back."""
    campaign = start_campaign(nodes, tmp_path)
    wait_until(lambda: experiments_of(tmp_path), "experiment 0 did not end", campaign)
    for name in NAMES:
        nodes.hold(name).touch()
    wait_until(lambda: all(map(nodes.running_on, NAMES)), "three candidates did not come to run", campaign)
    nodes.server.kill_server()
    away_s = time.monotonic()
    assert campaign.stdout is not None
    said = []
    for line in campaign.stdout:
        said.append(line)
        if "does not answer, waiting for it" in line:
            break
    for name in NAMES:
        nodes.hold(name).unlink()
    wait_until(lambda: not any(map(nodes.running_on, NAMES)), "the held candidates did not end", campaign)
    time.sleep(max(0.0, AWAY_S - (time.monotonic() - away_s)))  # the outage itself, not a wait for something
    nodes.server.start_server()
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode == 0, "".join(said) + printed
    assert [one.index for one in experiments_of(tmp_path)] == list(range(CANDIDATES + 1)), printed
    assert "the Prefect server is back" in printed
    assert nodes.runs_of(campaign_of(tmp_path)) == {str(index): "COMPLETED" for index in range(CANDIDATES + 1)}


def test_a_node_with_other_frozen_files_refuses_and_the_campaign_says_so(nodes: Nodes, tmp_path: Path) -> None:
    """The campaign claims another frozen environment than the nodes have."""
    os.environ["ARL_STAND_IN_DIGEST"] = "another"
    try:
        campaign = start_campaign(nodes, tmp_path, iterations=1)
    finally:
        del os.environ["ARL_STAND_IN_DIGEST"]
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode != 0
    assert "this node has frozen environment stand-in, the campaign another" in printed
    assert experiments_of(tmp_path) == []


def test_results_are_taken_off_the_server(nodes: Nodes) -> None:
    wanted = {"artifacts": {"type": {"any_": ["autoresearch-result"]}}}
    found = httpx.post(f"{nodes.server.url}/artifacts/filter", json=wanted, timeout=10)
    assert found.status_code == 200
    assert found.json() == []


def test_a_deployment_that_is_not_there_is_one_clear_line(nodes: Nodes, tmp_path: Path) -> None:
    campaign = start_campaign(nodes, tmp_path, **{"nodes.deployment": "experiment/nowhere"})
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode != 0
    assert "no deployment 'experiment/nowhere'" in printed
