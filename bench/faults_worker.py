"""A campaign under a Prefect worker, for bench.faults: `python -m bench.faults_worker PLACE PORT PARAMETERS_JSON`.

What docs/operations.md does: a deployment of the campaign, a worker, `prefect deployment run`. This process starts the
worker and the run, and ends with the run: 0 when it completed. Whoever kills the worker finds it among our children; what it
ran, which has a session of its own and goes on, becomes our child then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client

from bench.cluster import Cluster
from frozen_env.runtime import processes

FLOW = "bench/faults_flow.py:research"
DEPLOYMENT = "research/faults"
POLL_S = 0.2
LIMIT_S = 600.0
CLOSING_LIMIT_S = 120.0  # a busy machine's; a flow run hands its last events over before it ends


def main() -> int:
    place, port, parameters = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    processes.adopt_orphans()
    one = Cluster(place / "worker", port)
    one.deploy(FLOW, DEPLOYMENT.split("/")[1])
    one.start_worker("victim")
    try:
        return 0 if completed(begin(parameters)) else 1
    finally:
        one.close()


def begin(parameters: dict[str, Any]) -> UUID:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        chosen = {"preset": "embedded"} | parameters
        return client.create_flow_run_from_deployment(deployment.id, parameters=chosen).id


def completed(flow_run: UUID) -> bool:
    """Wait for the run's end; whether it completed."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run).state
        if state is not None and state.is_final():
            wait_for_runs()
            print(f"the flow run ended: {state.name} {state.message or ''}", flush=True)
            return state.is_completed()
        if not any(command(pid) for pid in processes.children(os.getpid())):
            with get_client(sync_client=True) as client:
                client.delete_flow_run(flow_run)  # or the next campaign's worker would begin with it
            print("the worker died before it began with the run, or with all of it", flush=True)
            return False
        time.sleep(POLL_S)
    return False


def wait_for_runs() -> None:
    """Wait, not for ever, until nothing but workers is left of what we started."""
    deadline_s = time.monotonic() + CLOSING_LIMIT_S
    while time.monotonic() < deadline_s:
        left = [pid for pid in processes.children(os.getpid()) if b"worker" not in command(pid)]
        if not any(command(pid) for pid in left):
            return
        time.sleep(POLL_S)


def command(pid: int) -> bytes:
    """A process's command line; b'' of one that is dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
