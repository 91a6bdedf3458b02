"""One side effect each: thin Prefect tasks over arl_core and frozen_env. Decisions live below, sequence lives in flows/.

No task caches or persists its result: what a campaign resumes from is its memory, and nothing else.
"""

from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

ONCE: dict[str, object] = {"cache_policy": NO_CACHE, "persist_result": False}
"""Options of a task that a retry cannot help: a crashed candidate is a result."""


def forget_results() -> None:
    """Have Prefect forget which task returned what: it remembers every result of a flow run, and a campaign has no end."""
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()


__all__ = ["ONCE", "forget_results"]
