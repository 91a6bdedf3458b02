"""Before a campaign's first run the machine must be quiet, or its user is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arl_core.config import load_config
from flows import quiet
from flows.display import PlainDisplay

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """Two cores of ours and one that we may not use; `busy(window)` gives the cores used by all, ours first."""

    def __init__(self, folder: Path, busy: Callable[[int], tuple[float, float, float]]) -> None:
        self.stat, self.busy, self.window, self.used_s = folder / "stat", busy, 0, [1000.0, 2000.0, 3000.0]
        self._write()

    def sleep(self, seconds: float) -> None:
        for core, share in enumerate(self.busy(self.window)):
            self.used_s[core] += share * seconds
        self.window += 1
        self._write()

    def _write(self) -> None:
        rows = [f"cpu{core} {round(used * TICKS)} 0 0 99 0 0 0 0 0 0" for core, used in enumerate(self.used_s)]
        self.stat.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *rows, "intr 12 0 0"]) + "\n")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


def told_while_waiting(machine: Machine, **settings: Any) -> list[str]:
    config = load_config("embedded", {"environment.budget_s": 20.0, **settings})
    told: list[str] = []
    quiet.wait_for_quiet(config, PlainDisplay(config, told.append), machine.sleep, machine.stat)
    return [line.strip() for line in told]


def test_a_quiet_machine_is_not_kept_waiting(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lambda _: (0.1, 0.1, 1.0))
    assert told_while_waiting(machine) == []
    assert machine.window == quiet.QUIET_WINDOWS


def test_the_first_run_waits_for_work_to_end_and_for_pauses_to_last(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lambda window: (0.0, 0.0, 0.0) if window in (5, 6) or window > 20 else (0.9, 0.2, 0.0))
    assert told_while_waiting(machine) == ["waiting for the machine to become quiet"]
    assert machine.window == 21 + quiet.QUIET_WINDOWS


def test_a_machine_that_stays_busy_is_told_and_used_after_three_budgets(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lambda _: (1.0, 0.5, 0.0))
    assert told_while_waiting(machine)[-1].startswith("other work keeps 1.5 of 2 cores busy")
    assert machine.window * quiet.WINDOW_S == 60


def test_work_beside_the_cores_that_candidates_need_does_not_matter(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lambda _: (1.0, 0.1, 0.0))
    assert told_while_waiting(machine, **{"environment.threads": 1}) == []
    both = told_while_waiting(machine, **{"environment.threads": 1, "parallel": 2})
    assert both[-1].startswith("other work keeps 1.1 of 2 cores busy")


@pytest.mark.parametrize("settings", [{"environment.device": "cuda"}, {"nodes.deployment": "experiment/node"}])
def test_candidates_that_run_elsewhere_wait_for_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    machine = Machine(tmp_path, lambda _: (1.0, 1.0, 1.0))
    assert told_while_waiting(machine, **settings) == []
    assert machine.window == 0


def test_a_system_without_proc_waits_for_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, lambda _: (1.0, 1.0, 1.0))
    machine.stat.unlink()
    assert told_while_waiting(machine) == []


@pytest.mark.skipif(not quiet.STAT.is_file(), reason="no /proc/stat")
def test_this_machines_own_account_is_read() -> None:
    cores = set(range(1024))
    before, began_s = quiet._seconds_used(quiet.STAT, cores), time.process_time()
    while time.process_time() - began_s < 0.3:
        pass
    assert quiet._seconds_used(quiet.STAT, cores) - before > 0.2
