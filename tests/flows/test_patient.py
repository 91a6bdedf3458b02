"""A campaign outlives a Prefect server that does not renew its concurrency lease."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from prefect import flow_engine
from prefect._internal.concurrency.cancellation import CancelledError
from prefect.concurrency import _leases

import flows.research  # noqa: F401  what a worker imports makes its engine patient
from flows import patient

ROOT = Path(__file__).resolve().parents[2]

LIMIT_S = 60.0


class Server:
    """Refuses the first `refusals` renewals."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.attempts = refusals, 0
        self.given_up, self.renewed = threading.Event(), threading.Event()

    def renew_concurrency_lease(self, **_: object) -> None:
        self.attempts += 1
        if self.attempts > self.refusals:
            self.renewed.set()
            return
        if self.attempts == _leases._RENEWAL_MAX_ATTEMPTS:
            self.given_up.set()
        raise httpx.ConnectError("connection refused")


@pytest.fixture
def serve(monkeypatch):
    def begin(refusals: int) -> Server:
        server = Server(refusals)

        @contextlib.contextmanager
        def client(**_: object) -> Iterator[Server]:
            yield server

        monkeypatch.setattr(_leases, "get_client", client)
        monkeypatch.setattr(_leases, "exponential_backoff_with_jitter", lambda *_: 0.0)
        return server

    return begin


def test_a_server_that_comes_back_renews_the_lease(serve):
    server = serve(refusals=patient.ATTEMPTS - 1)
    with flow_engine.maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True):
        assert server.renewed.wait(LIMIT_S)
    assert server.attempts == patient.ATTEMPTS


def test_a_server_that_stays_away_ends_no_campaign(serve):
    server = serve(refusals=10_000)
    with flow_engine.maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True):
        assert server.given_up.wait(LIMIT_S)
        for thread in threading.enumerate():
            if thread.name.startswith("concurrency-lease-renewal"):
                thread.join(LIMIT_S)  # it has done with the lease whatever it does
        assert server.attempts == patient.ATTEMPTS, "and we are still here"


def test_prefects_own_engine_would_end_it(serve):
    """Should this fail, Prefect has become patient itself and flows/patient.py can go."""
    server = serve(refusals=10_000)

    def campaign() -> None:
        with _leases.maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True):
            assert server.given_up.wait(LIMIT_S)
            threading.Event().wait(LIMIT_S)

    with pytest.raises(CancelledError):
        campaign()


def test_a_process_whose_log_nobody_reads_any_more_goes_on():
    """Prefect logs through rich, which ends a process that writes to a pipe without a reader."""
    code = (
        "import logging, sys\nfrom flows.patient import outlive_readers\noutlive_readers()\n"
        "from prefect.logging.handlers import PrefectConsoleHandler\n"
        "log = logging.getLogger('x')\nlog.addHandler(PrefectConsoleHandler(stream=sys.stderr))\n"
        "sys.stdin.readline()\nfor _ in range(3): log.warning('y' * 9999)\nprint('went on')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    output, _ = process.communicate("go\n", timeout=120)
    assert output == "went on\n"
