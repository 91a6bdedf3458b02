"""A campaign over three nodes: a real Prefect server, workers as separate processes, one of them killed. Needs no GPU.

Candidates sleep instead of computing, and what trains them is a stand-in; all else is real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arl_core.memory import Memory
from arl_core.records import Experiment
from bench.cluster import Cluster
from bench.scaling import SETTINGS
from frozen_env.contract import Cause

ROOT = Path(__file__).resolve().parents[2]
# A server, three workers and a dead one: minutes, and at the mercy of a busy machine's timing. `make test-slow` runs them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
CANDIDATES = 6
SLEEP_S = 3.0
LIMIT_S = 600.0


@pytest.fixture(scope="module")
def nodes(server: Cluster) -> Cluster:
    server.deploy("bench/sleeping_node.py:experiment")
    for name in ("a", "b", "c"):
        server.start_worker(name)
    server.wait_for_workers(3)
    return server


def start_campaign(nodes: Cluster, folder: Path, **settings: object) -> subprocess.Popen[str]:
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
    environment = nodes.environment | {"OMP_NUM_THREADS": "1"}
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


def wait_until(condition, what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.2)


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def test_a_node_that_dies_costs_no_experiment(nodes: Cluster, tmp_path: Path) -> None:
    campaign = start_campaign(nodes, tmp_path)
    wait_until(lambda: len(experiments_of(tmp_path)) >= 2, "no experiment was committed")
    victim = nodes.workers["b"].pid
    wait_until(lambda: children_of(victim), "the worker took no candidate")
    nodes.kill_worker("b")
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode == 0, printed
    experiments = experiments_of(tmp_path)
    assert [one.index for one in experiments] == list(range(CANDIDATES + 1)), printed
    assert "is scheduled again" in printed
    assert all(one.cause is not Cause.ABORTED for one in experiments), "no candidate was blamed for its node's death"
    assert all(one.environment_digest == "stand-in" for one in experiments)
    nodes.start_worker("b")
    nodes.wait_for_workers(3)


def test_a_server_that_is_away_for_a_while_costs_no_experiment(nodes: Cluster, tmp_path: Path) -> None:
    campaign = start_campaign(nodes, tmp_path)
    wait_until(lambda: len(experiments_of(tmp_path)) >= 2, "no experiment was committed")
    nodes.kill_server()
    time.sleep(5)  # the outage itself, not a wait for something
    nodes.start_server()
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode == 0, printed
    assert [one.index for one in experiments_of(tmp_path)] == list(range(CANDIDATES + 1)), printed
    assert "does not answer, waiting for it" in printed


def test_a_node_with_other_frozen_files_refuses_and_the_campaign_says_so(nodes: Cluster, tmp_path: Path) -> None:
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


def test_results_are_taken_off_the_server(nodes: Cluster) -> None:
    import httpx

    wanted = {"artifacts": {"type": {"any_": ["autoresearch-result"]}}}
    found = httpx.post(f"{nodes.url}/artifacts/filter", json=wanted, timeout=10)
    assert found.status_code == 200
    assert found.json() == []


def test_a_deployment_that_is_not_there_is_one_clear_line(nodes: Cluster, tmp_path: Path) -> None:
    campaign = start_campaign(nodes, tmp_path, **{"nodes.deployment": "experiment/nowhere"})
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert campaign.returncode != 0
    assert "no deployment 'experiment/nowhere'" in printed
