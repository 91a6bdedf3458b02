"""A Prefect server and workers as processes of their own, for benchmarks and tests: what docs/operations.md does by hand."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from flows.surroundings import ROOT
from frozen_env.runtime import processes

POOL = "bench"
START_LIMIT_S = 900.0  # a first start makes the database, and on a busy machine all takes minutes


class Cluster:
    """One server, its data in `folder`, and any number of workers; all end with close()."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.server: subprocess.Popen[bytes] | None = None
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use this server."""
        return os.environ | {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }

    def start_server(self) -> None:
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port), "--no-ui"]
        self.server = self._spawn(words, "server.log")
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            if self.server.poll() is not None:
                break
            time.sleep(0.3)
        raise RuntimeError(f"the Prefect server did not start; see {self.folder / 'server.log'}")

    def deploy(self, entrypoint: str, name: str = "node") -> None:
        """Make the work pool and a deployment of a flow in this checkout."""
        code = f"""
import sys
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
with get_client(sync_client=True) as client:
    try:
        client.create_work_pool(WorkPoolCreate(name={POOL!r}, type="process"))
    except ObjectAlreadyExists:
        pass
one = flow.from_source(source={str(ROOT)!r}, entrypoint={entrypoint!r})
one.deploy(name={name!r}, work_pool_name={POOL!r}, print_next_steps=False)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"no deployment of {entrypoint}: {done.stderr[-2000:]}")

    def start_worker(self, name: str, slots: int | None = 1, pool: str = POOL, **environment: str) -> None:
        """Start a worker, without a limit when slots is None; `environment` is what it and its runs have beside the server's."""
        words = ["worker", "start", "--pool", pool, "--name", name, *(["--limit", str(slots)] if slots else [])]
        self.workers[name] = self._spawn(words, f"{name}.log", environment)

    def wait_for_workers(self, count: int) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline_s:
            found = httpx.post(f"{self.url}/work_pools/{POOL}/workers/filter", json={}, timeout=10)
            if found.status_code == 200 and sum(one["status"] == "ONLINE" for one in found.json()) >= count:
                return
            time.sleep(0.3)
        raise RuntimeError(f"{count} workers did not come online; see {self.folder}")

    def kill_worker(self, name: str) -> None:
        """SIGKILL a worker with all that it started: the node has died. (A run has a session of its own.)"""
        worker = self.workers.pop(name)
        for pid in [worker.pid, *processes.descendants(worker.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.wait()

    def kill_server(self) -> None:
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        self.server = None

    def close(self) -> None:
        """End server and workers, and what the workers run: it has sessions of its own and would go on."""
        for worker in self.workers.values():
            for pid in processes.descendants(worker.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        ours = [*self.workers.values(), *([self.server] if self.server else [])]
        for process in ours:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in ours:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.workers, self.server = {}, None

    def _spawn(self, words: list[str], log: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.mortal", "prefect", *words],  # a bench that is killed leaves none behind
                env=self.environment | (environment or {}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A started server in `folder`, closed at the end with everything on it."""
    one = Cluster(folder)
    try:
        one.start_server()
        yield one
    finally:
        one.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
