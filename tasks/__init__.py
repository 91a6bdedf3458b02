"""One side effect each: thin Prefect tasks over arl_core and frozen_env. Decisions live below, sequence lives in flows/.

No task caches or persists its result: what a campaign resumes from is its memory, and nothing else.
"""

from typing import TypedDict

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.context import FlowRunContext


class Once(TypedDict):
    cache_policy: CachePolicy
    persist_result: bool


ONCE: Once = {"cache_policy": NO_CACHE, "persist_result": False}
"""Options of a task that a retry cannot help: a crashed candidate is a result."""


def forget_results() -> None:
    """Have Prefect forget which task returned what: it remembers every task of a flow run, and a campaign has no end.

    Results hold what tasks returned; assets, a set for each task run, hold nothing here (nothing is materialised) and still
    grow by 7 kB an experiment.
    """
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()
        context.task_run_assets.clear()


__all__ = ["ONCE", "forget_results"]
