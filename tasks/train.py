"""Have the frozen environment run one candidate, with a stopping verdict from the self-evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from arl_core.selfeval import Snapshot, make_judge
from frozen_env.contract import HostError, RunResult
from frozen_env.runtime.supervisor import Host, OnEvent
from tasks import ONCE

HOST_RETRIES = 2


def _host_died(_task: Task[..., Any], _run: TaskRun, state: State) -> bool:
    """A retry helps when the process around the candidate died; never when the candidate did."""
    try:
        state.result()
    except HostError:
        return True
    except BaseException:
        return False
    return False


@task(name="train", retries=HOST_RETRIES, retry_delay_seconds=1, retry_condition_fn=_host_died, **ONCE)
def train(
    host: Host, source: str, seed: int, place: Path, rule: str, snapshot: dict[str, Any], on_event: OnEvent
) -> RunResult:
    """Return the run's result; a crash of the candidate is one. `snapshot` is what the verdict knows, as plain JSON.

    Raises HostError when the host process keeps dying.
    """
    judge = make_judge(Snapshot.from_json(snapshot), rule=rule) if rule != "none" else None
    return host.run(source, seed=seed, place=place, judge=judge, on_event=on_event)
