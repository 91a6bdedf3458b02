"""Environment variables that Prefect and MLflow read at import; flows/__init__.py sets them first.

No account, no telemetry, no server to start: unless the user has pointed Prefect somewhere (a variable or a profile),
its data lie under mlruns/, and a flow starts an ephemeral server of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare() -> None:
    """Set what the user has not set."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default, 20 s, is missed on busy cores
        # Each event that waits for a slow or absent server holds its task's arguments: without a bound, memory grows.
        "PREFECT_EVENTS_WORKER_MAX_QUEUE_SIZE": "500",
        # On disk, or a server that is started again never gives back what a run that died with it held (docs/operations.md).
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds without an answer, of each try; the default is 120
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default waits for minutes; what is missing is made up for later
        "GIT_PYTHON_REFRESH": "quiet",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make busy cores ten times slower (docs/log.md)
    }
    # Under a worker the log wants everything; anywhere else the display tells it all.
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        defaults["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
    has_profile = (Path.home() / ".prefect" / "profiles.toml").exists()
    if "PREFECT_API_URL" not in os.environ and not has_profile:
        defaults["PREFECT_HOME"] = str(ROOT / "mlruns" / "prefect")
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
