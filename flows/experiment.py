"""One candidate as a flow of its own, deployable to any node.

All that crosses to the node is text and small JSON: the source, the environment's constants, what a stopping verdict
needs. The node opens no memory and loads no policy. The digest of its frozen environment must be the campaign's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow

from flows import wire
from flows.blame import TO_BLAME, check_blame, disk_full, gpu_names
from flows.heartbeat import Heartbeat
from frozen_env.contract import HostError, ManifestError
from frozen_env.fetch import data_dir
from frozen_env.runtime import gpu_lock
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec
from tasks.train import train

PREFIX = "autoresearch-experiment-"
GPU_WAIT_S = 900.0  # a worker with more slots than GPUs makes its candidates wait for one
HOST_DIED = "the host died under the candidate"  # the one failure of this flow that the candidate may have caused


@flow(name="experiment", persist_result=False)
def experiment(
    source: str,
    environment: dict[str, Any],
    environment_digest: str,
    seed: int = 0,
    rule: str = "none",
    snapshot: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and score `source` on this node and return a RunResult as JSON; a campaign reads it from the server.

    Whatever it raises is the node's refusal and is not held against the candidate, but for HOST_DIED: ManifestError when
    the frozen environment is not the campaign's, HostError when the GPU or the disk that a candidate needs is not there.
    """
    spec = EnvironmentSpec.from_json(environment)
    with (
        Heartbeat() as heartbeat,
        scratch_folder() as folder,
        free_gpu(spec) as gpu,
        Host(spec, data_dir(), Path(folder) / "host.log", gpu) as host,
    ):
        host.wait_ready()
        place = Path(folder)
        if full := disk_full(place, spec):
            raise HostError(f"{full}; make room on this node, or set TMPDIR elsewhere")
        if host.environment_digest != environment_digest:
            raise ManifestError(
                f"this node has frozen environment {host.environment_digest}, the campaign {environment_digest}; "
                "install the campaign's version here and prepare its data"
            )
        try:
            result = train(host, source, seed, place, rule, wire.unpack(snapshot or {}), heartbeat.event)
        except HostError as error:
            check_blame("the candidate", None, gpu, place, spec)
            raise HostError(f"{HOST_DIED}: {error}") from error
        if result.ending in TO_BLAME:
            check_blame("the candidate", result, gpu, place, spec)
        heartbeat.deliver(result)
    return result.to_json()


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    """Make a temporary folder, and remove those of runs that were killed here: their weights would fill the disk."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = old.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        yield folder


@contextlib.contextmanager
def free_gpu(spec: EnvironmentSpec) -> Iterator[gpu_lock.HeldGpu | None]:
    """Hold one of this node's GPUs, None for a candidate that needs none. Raises HostError when none is there or free."""
    names = gpu_names(spec)
    if not names:
        yield None
        return
    with contextlib.closing(gpu_lock.hold(names, GPU_WAIT_S)) as held:
        yield held
