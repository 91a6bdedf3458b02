"""Commit an iteration: one DuckDB transaction of the experiment and the state after it. This *is* the commit."""

from __future__ import annotations

from prefect import task

from arl_core.errors import MemoryFileError
from arl_core.memory import Memory
from arl_core.records import Experiment, State
from tasks import ONCE


@task(name="commit", **ONCE)
def commit(memory: Memory, experiment: Experiment, state: State) -> None:
    """Write both or nothing. Raises MemoryFileError (disk full, file held by another process); then nothing was written."""
    try:
        memory.commit_iteration(experiment, state)
    except ValueError as error:
        raise MemoryFileError(f"{error}; another process wrote to this campaign") from error
