"""One candidate as a flow of its own, deployable to any node.

All that crosses to the node is text and small JSON: the source, the environment's constants, what a stopping verdict
needs. The node opens no memory and loads no policy. The digest of its frozen environment must be the campaign's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import flow

from frozen_env.contract import ManifestError
from frozen_env.fetch import data_dir
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec
from tasks.train import train


@flow(name="experiment", persist_result=True)
def experiment(
    source: str,
    environment: dict[str, Any],
    environment_digest: str,
    seed: int = 0,
    rule: str = "none",
    snapshot: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and score `source` on this node and return a RunResult as JSON.

    Raises ManifestError when this node's frozen environment is not the one that the campaign runs on.
    """
    with (
        tempfile.TemporaryDirectory(prefix="experiment-") as folder,
        Host(EnvironmentSpec.from_json(environment), data_dir(), Path(folder) / "host.log") as host,
    ):
        host.wait_ready()
        if host.environment_digest != environment_digest:
            raise ManifestError(
                f"this node has frozen environment {host.environment_digest}, the campaign {environment_digest}; "
                "install the campaign's version here and prepare its data"
            )
        result = train(host, source, seed, Path(folder), rule, snapshot or {}, lambda _event: None)
    return result.to_json()
