"""Commit one re-run: a row of its own, so that a campaign killed during a confirmation pays for none twice."""

from __future__ import annotations

from prefect import task

from arl_core.errors import MemoryFileError
from arl_core.outcome import Outcome
from arl_core.repeats import Repeat, Repeats
from frozen_env.contract import RunResult
from tasks import ONCE


@task(name="commit-repeat", **ONCE)
def commit_repeat(
    repeats: Repeats,
    repeat: Repeat,
    result: RunResult | None = None,
    confirmed: tuple[int, float, int] | None = None,
    deposed: tuple[int, Outcome] | None = None,
) -> None:
    """Write the row, and what it says of the incumbent (`confirmed`, `deposed`), or nothing. Raises MemoryFileError."""
    try:
        repeats.add(repeat, result=result, confirmed=confirmed, deposed=deposed)
    except ValueError as error:
        raise MemoryFileError(f"{error}; another process wrote to this campaign") from error
