"""The trusted process that runs candidates on one machine. It holds the data; candidates are forked from its zygote.

It speaks JSON lines with its caller on stdin and stdout, one candidate at a time. When the caller goes away (end of
file on stdin), the candidate's process tree is ended and the host exits: nothing survives the campaign.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frozen_env.contract import Cause, Ending, FrozenEnvError, RunResult
from frozen_env.runtime import disk, gpus, launch, performance, predicting, processes, sandbox, scoring, training
from frozen_env.runtime.channel import LineReader, encode, write_all
from frozen_env.runtime.compile_cache import CompileCache
from frozen_env.runtime.effort import Allowance
from frozen_env.runtime.problem import Commanded, Problem, Served, TrainingRows
from frozen_env.runtime.zygote import Zygote
from frozen_env.spec import EnvironmentSpec

CHEATS = (Cause.LOOKAHEAD, Cause.STATEFUL, Cause.NOT_DETERMINISTIC, Cause.PROTOCOL)  # rejected, not merely failed
CALLER_LINE_BYTES = 4 << 20  # our own side: a run request carries the candidate's source


class Caller:
    """The other end of stdin and stdout. Standard output is kept for messages; prints of libraries go to stderr."""

    def __init__(self) -> None:
        self.in_fd = os.dup(0)
        self.out_fd = os.dup(1)
        os.dup2(2, 1)
        self._reader = LineReader(CALLER_LINE_BYTES)
        self._inbox: list[dict[str, Any]] = []

    def say(self, message: dict[str, Any]) -> None:
        write_all(self.out_fd, encode(message))

    def read_now(self) -> list[dict[str, Any]]:
        """Read what is there; the caller's end of file counts as an abort, and as the last message."""
        data = os.read(self.in_fd, 65536)
        return self._reader.feed(data) if data else [{"abort": True}, {"end": True}]

    def next_request(self) -> dict[str, Any] | None:
        """Wait for a request. None when the caller has gone."""
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if "run" in message:
                    return message
                if "end" in message:
                    return None
            select.select([self.in_fd], [], [])
            self._inbox += self.read_now()

    def hear_during_run(self) -> list[dict[str, Any]]:
        messages = self.read_now()
        self._inbox += [message for message in messages if "end" in message]
        return messages


def serve(
    spec: EnvironmentSpec,
    load: Callable[[], tuple[Problem, str]],
    cache: CompileCache | None,
    *,
    torch: bool,
    files: tuple[str, ...],
) -> None:
    """Answer run requests until the caller goes away. `load` returns the problem and the environment's digest; `torch`
    says whether candidates want it, `files` are those that a source consists of, `cache` is for what torch compiles.

    The zygote is forked before the data is loaded, so that no candidate can find any of it in its memory.
    """
    caller = Caller()
    processes.adopt_orphans()
    words = sandbox.describe(spec.sandbox)
    no_gpu = gpus.wake() if spec.device != "cpu" else ""
    zygote = Zygote(spec, words, torch=torch)
    processes.require_sight_of(zygote.pid)
    problem, environment_digest = load()
    device = zygote.wait_ready()
    if no_gpu and needs_gpu(spec.device, device, torch):
        raise FrozenEnvError(no_gpu)
    spec = dataclasses.replace(spec, device=device)
    pids = [os.getpid(), zygote.pid]
    caller.say({"event": "ready", "sandbox": words, "environment_digest": environment_digest, "pids": pids})
    while (request := caller.next_request()) is not None:
        order = request["run"]
        result = run_candidate(spec, problem, files, zygote, caller, order, cache)
        result = dataclasses.replace(
            result, sandbox=words, environment_digest=environment_digest, seed=int(order["seed"])
        )
        caller.say({"event": "result", "result": result.to_json()})


def needs_gpu(asked: str, found: str, torch: bool) -> bool:
    """Say whether candidates cannot do without a GPU. Where torch has not looked, "cuda" is a guess from the driver's list."""
    return asked == "cuda" or (torch and found == "cuda")


def run_candidate(
    spec: EnvironmentSpec,
    problem: Problem,
    files: tuple[str, ...],
    zygote: Zygote,
    caller: Caller,
    order: dict[str, Any],
    cache: CompileCache | None,
) -> RunResult:
    """Train one candidate, then score what it submitted."""
    source, seed = str(order["source"]), int(order["seed"])
    given = problem.commands.given if isinstance(problem, Commanded) else {}
    place = launch.Workplace(Path(order["place"]), files, given)
    work = _work(problem, seed)
    place.create(source)
    if cache is not None:
        cache.give(place.scratch, spec.scratch_limit_mb)
    run = training.train(spec, place, seed, work, zygote, caller.say, caller.in_fd, caller.hear_during_run)
    if cache is not None and run.started_at_s is not None and cache.is_trusted(source):
        cache.take(place.scratch)
    disk.remove(place.scratch)
    result = RunResult(
        ending=run.ending or Ending.CRASHED,
        cause=run.cause,
        reason=run.reason,
        reports=tuple(run.reports),
        startup_s=run.startup_s,
        training_s=run.training_s,
        tokens_served=run.tokens_served,
        peak_memory_mb=run.peak_memory_mb,
        log_tail=run.log_tail,
        extra={"performance": _performance(spec, run, run.told, "")},
    )
    if result.ending is not Ending.FINISHED:
        return result
    caller.say({"event": "scoring"})
    began_s = time.monotonic()
    surroundings = (zygote, caller.in_fd, caller.hear_during_run)
    if isinstance(problem, Commanded):
        found = predicting.score(spec, place, problem, seed, *surroundings)
    else:
        assert isinstance(problem, Served)
        allowance = Allowance(spec, run.submission_bytes, run.training_s, run.tokens_served)
        found = scoring.score(spec, place, problem, seed, secrets.randbits(128), allowance, *surroundings)
    result = dataclasses.replace(
        result,
        score=found.score,
        scoring_s=time.monotonic() - began_s,
        peak_memory_mb=max(result.peak_memory_mb, found.peak_memory_mb),
        extra={"performance": _performance(spec, run, run.told | found.told, found.device_name)},
    )
    if found.score is None:
        ending = Ending.REJECTED if found.cause in CHEATS else Ending.CRASHED
        if found.cause is Cause.OVERRUN:
            ending = Ending.TIMED_OUT  # as when it trains on by itself
        log = result.log_tail + found.log_tail
        result = dataclasses.replace(
            result, ending=ending, cause=found.cause, reason=found.reason, log_tail=log[-4000:]
        )
    return result


def _work(problem: Problem, seed: int) -> TrainingRows | launch.Commands:
    """What a candidate is given to train on."""
    if isinstance(problem, Commanded):
        return problem.commands
    assert isinstance(problem, Served)
    return problem.training_rows(seed)


def _performance(
    spec: EnvironmentSpec, run: training.Training, told: dict[str, float], told_device_name: str
) -> dict[str, Any]:
    return performance.figures(
        reports=run.reports,
        training_s=run.training_s,
        budget_s=run.granted_s,
        tokens=run.tokens_served,
        device_name=gpus.device_name(spec.device) or told_device_name,
        told=told,
    )
