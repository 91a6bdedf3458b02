"""One side effect each: thin Prefect tasks over arl_core and frozen_env. Decisions live below, sequence lives in flows/.

No task caches or persists its result: what a campaign resumes from is its memory, and nothing else.
"""

from prefect.cache_policies import NO_CACHE

ONCE: dict[str, object] = {"cache_policy": NO_CACHE, "persist_result": False}
"""Options of a task that a retry cannot help: a crashed candidate is a result."""

__all__ = ["ONCE"]
