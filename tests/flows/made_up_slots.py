"""Slots whose runs end when the test lets them, for tests of what surrounds a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from arl_core.config import load_config
from flows.slots import LocalSlots, Order
from frozen_env.contract import Cause, Ending, HostError, RunResult


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
        if source.startswith("crash"):
            return RunResult(Ending.CRASHED, Cause.EXCEPTION, source.partition(": ")[2])
        return RunResult(Ending.FINISHED)


def opened(count: int, device: str = "cuda", policy_device: str = "cpu") -> LocalSlots:
    settings = {"environment.device": device, "policy.device": policy_device}
    return LocalSlots(load_config("embedded", settings), count, Path("unused"))


def order(source: str = "x", index: int = 1) -> Order:
    return Order(index, source, 0, Path("unused"), "none", {})


def wait_until(reached: Callable[[], bool]) -> None:
    """Return as soon as it is so; fail after 30 s."""
    deadline_s = time.monotonic() + 30
    while not reached() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert reached()
