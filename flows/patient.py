"""A campaign under a deployment's concurrency limit outlives a Prefect server that is away, and a worker that is killed.

The limit is a lease, which Prefect's engine renews every 225 s; when three attempts within some seconds fail, it ends the
flow run. Here the limit only has a second start refused at once; what keeps two campaigns apart is the lock beside the
memory. So a renewal is tried for as long as a lease lives, and a campaign without one goes on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

ATTEMPTS = 30  # with pauses of 10 s at most: a lease lives for 300 s


def outlive_readers() -> None:
    """Have rich go silent when its reader is gone: Prefect logs through it, and by itself it ends the process then.

    Under a worker the worker reads; one that is killed must not take its campaign along.
    """
    from rich.console import Console

    def fall_silent(console: Console) -> None:
        console.quiet = True

    Console.on_broken_pipe = fall_silent  # type: ignore[method-assign, assignment]


def outlive_servers() -> None:
    """Have Prefect's engine in this process be patient with its server. Doing it twice does nothing."""
    from prefect import flow_engine
    from prefect.concurrency import _leases

    _leases._RENEWAL_MAX_ATTEMPTS = ATTEMPTS
    maintain = _leases.maintain_concurrency_lease

    def patient(
        lease_id: UUID, lease_duration: float, raise_on_lease_renewal_failure: bool = False, **named: Any
    ) -> AbstractContextManager[None]:
        return maintain(lease_id, lease_duration, raise_on_lease_renewal_failure=False, **named)

    flow_engine.maintain_concurrency_lease = patient  # type: ignore[assignment, attr-defined]
