"""bench.gpu_probe on a CPU: what a candidate says of each step is told, and what it never says is not ok."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Self

import pytest

import bench.gpu_probe as module
from frozen_env.contract import Cause, Ending, RunResult


class SaysThis:
    """A host whose candidate leaves a log and an ending."""

    log, cause = "", Cause.EXCEPTION

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, *_: Any, **__: Any) -> RunResult:
        return RunResult(Ending.CRASHED, self.cause, "its last line", log_tail=self.log)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> type[SaysThis]:
    monkeypatch.setattr(module, "Host", SaysThis)
    monkeypatch.setattr(module, "held_for", lambda _device: contextlib.nullcontext())
    return SaysThis


def test_a_candidate_goes_through_the_steps_of_a_cpu_inside_and_outside(capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {
        "inside": {"kernel": "ok", "out_of_memory": "ok"},
        "outside": {"kernel": "ok", "out_of_memory": "ok"},
    }


def test_a_step_that_fails_is_told_in_its_own_words_and_one_that_is_not_reached_is_not_ok(
    host: type[SaysThis], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "log", "probe-step driver AssertionError: cuInit returned 304\nprobe-step forged ok\n")
    assert module.main([]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["inside"]
    assert told == {
        "driver": "AssertionError: cuInit returned 304",
        "kernel": "not reached",
        "compiled": "not reached",
        "out_of_memory": "exception: its last line",
    }


def test_all_steps_of_a_gpu_are_ok_only_together(host: type[SaysThis], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["driver", "kernel", "compiled"]
    monkeypatch.setattr(host, "cause", Cause.OUT_OF_MEMORY)
    monkeypatch.setattr(host, "log", "".join(f"probe-step {step} ok\n" for step in steps))
    assert module.main([]) == 0
    monkeypatch.setattr(host, "log", "".join(f"probe-step {step} ok\n" for step in steps[:2]))
    assert module.main([]) == 1


def test_the_steps_that_are_told_are_those_that_the_candidate_takes() -> None:
    for step in module.STEPS["cuda"][:-1]:
        assert f"def {step}():" in module.CANDIDATE
