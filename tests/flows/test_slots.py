"""Slots of this machine: a host and a GPU each, side by side, ended within seconds, and never fooled by a dead GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arl_core.config import load_config
from flows import slots as module
from flows.slots import LocalSlots, Order
from frozen_env.contract import Cause, Ending, HostError, RunResult
from frozen_env.runtime import gpu_lock


class MadeUpHost:
    """A host whose runs end when the test lets them, or when they are told to."""

    made: list[MadeUpHost]

    def __init__(self, _spec, _data, _stderr, gpu):
        self.gpu, self.sandbox, self.environment_digest = gpu, "on", "digest"
        self.may_end, self.killed, self.listens = threading.Event(), False, True
        self.runs, self.aborted = 0, False
        MadeUpHost.made.append(self)

    def start(self): ...

    def wait_ready(self): ...

    def close(self): ...

    def abort(self):
        if self.listens:
            self.aborted = True
            self.may_end.set()

    def kill(self):
        self.killed = True
        self.may_end.set()

    def run(self, source):
        self.runs += 1
        assert self.may_end.wait(30)
        if self.killed:
            raise HostError("the host process ended")
        if self.aborted:
            return RunResult(Ending.CRASHED, Cause.ABORTED, "the campaign was interrupted")
        crashed = source == "crash"
        return RunResult(Ending.CRASHED if crashed else Ending.FINISHED, Cause.EXCEPTION if crashed else Cause.NONE)


@pytest.fixture(autouse=True)
def _made_up(monkeypatch, tmp_path):
    MadeUpHost.made = []
    monkeypatch.setattr(module, "Host", MadeUpHost)
    monkeypatch.setattr(module, "train", lambda host, source, *_: host.run(source))
    monkeypatch.setattr(gpu_lock.tempfile, "gettempdir", lambda: str(tmp_path))


def opened(count: int, device: str = "cuda") -> LocalSlots:
    return LocalSlots(load_config("embedded", {"environment.device": device}), count, Path("unused"))


def order(source: str = "x", index: int = 1) -> Order:
    return Order(index, source, 0, Path("unused"), "none", {})


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not reached() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert reached()


def test_each_slot_has_a_gpu_of_its_own_and_gives_it_back(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b", "c"])
    first = opened(2)
    assert [host.gpu.name for host in MadeUpHost.made] == ["a", "b"]
    with pytest.raises(HostError, match="every GPU is taken"):
        opened(2)
    first.close()
    opened(3).close()


def test_on_a_cpu_no_gpu_is_held(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a"])
    slots = opened(2, device="cpu")
    assert [host.gpu for host in MadeUpHost.made] == [None, None]
    slots.close()


def test_candidates_run_side_by_side(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", list)
    slots = opened(2)
    flights = [slots.submit(order(index=index), print) for index in (1, 2)]
    _wait_until(lambda: sum(host.runs for host in MadeUpHost.made) == 2)
    assert [host.runs for host in MadeUpHost.made] == [1, 1]
    for host in MadeUpHost.made:
        host.may_end.set()
    assert [flight.result(30).ending for flight in flights] == [Ending.FINISHED] * 2
    slots.close()


@pytest.mark.parametrize("listens", [True, False])
def test_closing_ends_what_runs_and_kills_what_does_not_listen(monkeypatch, listens):
    monkeypatch.setattr(gpu_lock, "visible", list)
    monkeypatch.setattr(module, "ABORT_LIMIT_S", 0.2)
    slots = opened(2)
    for host in MadeUpHost.made:
        host.listens = listens
    flight = slots.submit(order(), print)
    _wait_until(lambda: any(host.runs for host in MadeUpHost.made))
    slots.close()
    with pytest.raises(HostError):  # and no result: a re-run that we ended says nothing of its candidate
        flight.result(0)
    assert any(host.killed for host in MadeUpHost.made) is not listens


def test_a_crash_is_not_counted_when_its_gpu_has_vanished(monkeypatch):
    present = ["a"]
    monkeypatch.setattr(gpu_lock, "visible", lambda: list(present))
    slots = opened(1)
    MadeUpHost.made[0].may_end.set()
    assert slots.run(order("crash"), print).ending is Ending.CRASHED, "the GPU is there: the candidate crashed"
    present.clear()
    assert slots.run(order("fine"), print).ending is Ending.FINISHED
    with pytest.raises(HostError, match=r"GPU a has vanished while experiment 7 ran; it is not counted"):
        slots.run(order("crash", index=7), print)
    slots.close()
