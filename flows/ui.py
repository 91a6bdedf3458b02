"""Serve the MLflow page and the Prefect page of this checkout until interrupted; print their addresses.

python -m flows.ui [--mlflow-port 5000] [--prefect-port 4200]

A Prefect server that runs at that port already, as for nights, has its page: no other is started.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from flows import surroundings
from tasks.track import runs_page

POLL_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    options = parser.parse_args(arguments)
    database = surroundings.ROOT / "mlruns" / "mlflow.db"
    if not database.is_file():
        print(
            f"error: no {database.relative_to(surroundings.ROOT)} yet; run a campaign first (make campaign)",
            file=sys.stderr,
        )
        return 1
    print(
        f"MLflow:  http://127.0.0.1:{options.mlflow_port}\nPrefect: http://127.0.0.1:{options.prefect_port}\nend with Ctrl-C"
    )
    # Without it the page asks port 4200, wherever it was served from itself.
    api = {"PREFECT_UI_API_URL": f"http://127.0.0.1:{options.prefect_port}/api"}
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", *command], env=os.environ | api | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        )
        for command in commands(database, options.mlflow_port, options.prefect_port)
    ]
    page = runs_page(f"http://127.0.0.1:{options.mlflow_port}", database.parent)
    print(f"experiments, best first: {page}", flush=True)
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(POLL_S)
        print("error: a server ended by itself; see its message above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=30)


def commands(database: Path, mlflow_port: int, prefect_port: int) -> list[list[str]]:
    """What to start: MLflow's page, and Prefect's unless something listens there already."""
    here = ["--host", "127.0.0.1", "--port"]
    mlflow = ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}", *here, str(mlflow_port)]
    prefect = ["prefect", "server", "start", *here, str(prefect_port)]
    return [mlflow] if is_taken(prefect_port) else [mlflow, prefect]


def is_taken(port: int) -> bool:
    """Whether something listens at a port of this machine."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(main())
