"""Signals from outside, on a real campaign: real host, sandbox, candidate and Prefect server.

This process adopts orphans, so whatever a dead campaign leaves behind turns up below it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arl_core.campaign_lock import campaign_lock
from arl_core.memory import Memory
from frozen_env.runtime import processes
from tests.flows.test_campaign import QUICK

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)
LIMIT_S = 600.0
TIDY_S = 90.0  # generous: a busy machine takes ten times as long


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    processes.adopt_orphans()
    yield
    processes._libc.prctl(processes.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def training_campaign(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a campaign whose candidates train for a minute, and return when the first one does."""
    settings = QUICK | {"memory": str(folder / "mlruns" / "memory.duckdb"), "environment.budget_s": 60.0}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "flows.research", "--preset", "embedded", "--iterations", "2", *words]
    campaign = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert campaign.stdout is not None
    for line in campaign.stdout:
        if "loss" in line:
            return campaign
    raise AssertionError(f"no candidate trained; exit code {campaign.wait()}")


def left_over(before: set[int]) -> list[str]:
    """Command lines of what still lives below us and did not before, after a time to go."""
    deadline_s = time.monotonic() + TIDY_S
    while True:
        alive = []
        for pid in set(processes.descendants(os.getpid())) - before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            with contextlib.suppress(OSError):
                if words := Path(f"/proc/{pid}/cmdline").read_bytes():
                    alive.append(words.replace(b"\0", b" ").decode("utf-8", "replace")[:200])
        if not alive or time.monotonic() > deadline_s:
            return alive
        time.sleep(0.1)


def status_of(folder: Path) -> str:
    memory = Memory(folder / "mlruns" / "memory.duckdb")
    with contextlib.closing(memory):
        return memory.get_campaign("latest").status


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_campaign_ends_tidily_when_it_is_asked_to(server, prepared_data, tmp_path, sign, code):
    before = set(processes.descendants(os.getpid()))
    campaign = training_campaign(tmp_path, server.environment)
    began_s = time.monotonic()
    campaign.send_signal(sign)
    printed, _ = campaign.communicate(timeout=LIMIT_S)
    assert time.monotonic() - began_s < TIDY_S
    assert campaign.returncode == code, printed
    assert "interrupted; go on with" in printed
    assert "Traceback" not in printed
    assert status_of(tmp_path) == "interrupted"
    assert left_over(before) == []


def test_a_killed_campaign_leaves_no_process_and_no_lock(prepared_data, tmp_path):
    """With an ephemeral server of its own, as on a laptop."""
    before = set(processes.descendants(os.getpid()))
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    campaign = training_campaign(tmp_path, environment | {"PREFECT_HOME": str(tmp_path / "prefect")})
    kinds = " ".join(
        Path(f"/proc/{pid}/cmdline").read_text() for pid in set(processes.descendants(os.getpid())) - before
    )
    assert "frozen_env.node" in kinds
    assert "flows.mortal" in kinds
    campaign.kill()
    campaign.communicate(timeout=LIMIT_S)
    assert left_over(before) == []
    with campaign_lock(tmp_path / "mlruns" / "memory.duckdb"):
        pass
