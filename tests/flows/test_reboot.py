"""After a reboot, or a power cut, the next night begins: a real server, a real worker, a flow that only waits.

A deployment's concurrency limit counts in the server's database, and a lease gives the slot back when a flow died without a
word. Prefect keeps leases in the server's memory unless it is told otherwise; what docs/operations.md tells it is used here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.cluster import POOL, Cluster, cluster
from tests.flows.test_deployments import DEPLOYMENTS, ROOT

STORAGE = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
LIMIT_S = 1200.0
FLOW = """
import json
import sys
import time

from prefect import flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig


@flow
def night(seconds: float) -> None:
    time.sleep(seconds)


if __name__ == "__main__":
    folder, pool, limit = sys.argv[1:]
    flow.from_source(source=folder, entrypoint="night.py:night").deploy(
        name="night", work_pool_name=pool, concurrency_limit=ConcurrencyLimitConfig(**json.loads(limit))
    )
"""


def test_every_server_of_the_docs_keeps_its_leases_on_disk():
    blocks = [one for one in OPERATIONS.split("```")[1::2] if "prefect server start" in one]
    assert blocks
    for block in blocks:
        assert re.search(rf"{STORAGE}=\S+filesystem\b.*prefect server start", block, re.DOTALL), block


class Nights:
    """A server with one deployment under the limit of `research/overnight`, and a worker."""

    def __init__(self, server: Cluster) -> None:
        self.server = server
        (server.folder / "night.py").write_text(FLOW, encoding="utf-8")
        self.ask("POST", "/work_pools/", name=POOL, type="process")
        (limit,) = [one["concurrency_limit"] for one in DEPLOYMENTS if one["name"] == "overnight"]
        words = [str(server.folder / "night.py"), str(server.folder), POOL, json.dumps(limit)]
        subprocess.run([sys.executable, *words], env=server.environment, check=True, timeout=LIMIT_S)
        self.deployment = self.ask("GET", "/deployments/name/night/night")["id"]
        self.start_worker()

    def ask(self, verb: str, path: str, **body: Any) -> Any:
        """Ask the server; a busy one may say 503, and is asked again."""
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            answer = httpx.request(verb, f"{self.server.url}{path}", json=body or None, timeout=60)
            if answer.status_code != 503 or time.monotonic() > deadline_s:
                return answer.raise_for_status().json()
            time.sleep(1)

    def start_worker(self) -> None:
        self.server.start_worker("nights", slots=None)  # no limit: docs/operations.md says why

    def begin(self, seconds: float) -> str:
        """Ask for a run, as the scheduler does; return its id."""
        wanted = {"parameters": {"seconds": seconds}, "state": {"type": "SCHEDULED"}}
        return self.ask("POST", f"/deployments/{self.deployment}/create_flow_run", **wanted)["id"]

    def state(self, run: str) -> str:
        return self.ask("GET", f"/flow_runs/{run}")["state"]["type"]

    def outcome(self, run: str) -> str:
        """The state that a run reaches once a worker has it."""
        wait_until(lambda: self.state(run) not in ("SCHEDULED", "PENDING"), f"run {run} was not begun")
        return self.state(run)

    def slots_taken(self) -> float:
        (limit,) = self.ask("POST", "/v2/concurrency_limits/filter", limit=10)
        return limit["active_slots"]

    def reboot(self) -> None:
        """SIGKILL the server first, so that nobody is told of the others' end; then worker and flow. Begin anew."""
        self.server.kill_server()
        self.server.kill_worker("nights")
        self.server.start_server()
        self.start_worker()


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    found = re.search(rf"{STORAGE}=(\S+)", OPERATIONS)
    assert found
    monkeypatch.setenv(STORAGE, found[1])
    with cluster(tmp_path) as server:
        yield Nights(server)


def wait_until(condition: Callable[[], Any], otherwise: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, otherwise
        time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_night_after_a_reboot_is_not_cancelled(nights: Nights) -> None:
    """Six minutes: the flow's engine asks for a lease of 300 s, whatever the server's settings say."""
    old = nights.begin(seconds=LIMIT_S)
    assert nights.outcome(old) == "RUNNING"
    assert nights.outcome(nights.begin(seconds=0.0)) == "CANCELLED", "the limit holds while a night runs"

    nights.reboot()
    wait_until(lambda: nights.slots_taken() < 0.5, "the dead run keeps its slot")
    assert nights.state(old) == "RUNNING", "nobody told the server"
    assert nights.outcome(nights.begin(seconds=0.0)) in ("RUNNING", "COMPLETED")
