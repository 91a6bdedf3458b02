"""Score a submission: fresh confined workers answer held-out inputs, the trusted side measures the answers.

Each pass of the problem's scoring plan has a worker process of its own, forked before it hears anything of the inputs.
Logits come back through shared memory as float32; nothing that a worker sends is trusted beyond its shape.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from dataclasses import dataclass, field
from mmap import mmap

import numpy as np

from frozen_env.contract import Cause, Score
from frozen_env.runtime import client, launch, processes, worker
from frozen_env.runtime.channel import Channel, Closed, ProtocolError
from frozen_env.runtime.problem import Problem, ScoringPlan
from frozen_env.runtime.training import last_line
from frozen_env.spec import EnvironmentSpec

OUTPUT_TAIL_BYTES = 16_384


@dataclass
class Scoring:
    """Outcome of scoring: a score, or a cause with its reason."""

    score: Score | None = None
    cause: Cause = Cause.NONE
    reason: str = ""
    seconds: float = 0.0
    log_tail: str = ""


@dataclass
class _Worker:
    child: launch.Child
    inputs: mmap
    outputs: mmap
    output: bytes = b""
    started_s: float = field(default_factory=time.monotonic)

    def read_output(self) -> None:
        os.set_blocking(self.child.output_fd, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.child.output_fd, 65536):
                self.output = (self.output + data)[-OUTPUT_TAIL_BYTES:]

    def close(self) -> None:
        self.child.channel.close()
        os.close(self.child.output_fd)
        self.inputs.close()
        self.outputs.close()


class _Refused(Exception):
    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason


def score(spec: EnvironmentSpec, place: launch.Workplace, problem: Problem, seed: int) -> Scoring:
    """Measure place.submission with problem's metric. Leaves no process behind."""
    began_s = time.monotonic()
    plan = problem.scoring_plan(seed)
    place.scratch.mkdir(parents=True, exist_ok=True)
    workers: list[_Worker] = []
    outcome = Scoring()
    deadline_s = began_s + spec.startup_allowance_s + spec.score_limit_s
    try:
        workers += [_fork_worker(spec, place, seed, plan, inputs) for inputs in plan.passes]
        for one in workers:
            _wait_ready(one, deadline_s)
        ready_s = time.monotonic()
        deadline_s = ready_s + spec.score_limit_s
        for pass_index, one in enumerate(workers):
            _run_pass(one, plan, pass_index, deadline_s)
        if leak := plan.lookahead():
            raise _Refused(Cause.LOOKAHEAD, leak)
        found = plan.result()
        outcome.score = Score(
            metric=problem.metric,
            value=float(found["value"]),
            direction=problem.direction,
            held_out_tokens=int(found["held_out_tokens"]),
            held_out_bytes=int(found["held_out_bytes"]),
            seconds=time.monotonic() - ready_s,
            startup_s=ready_s - began_s,
            probe_max_diff=float(found["probe_max_diff"]),
        )
    except _Refused as refused:
        outcome.cause, outcome.reason = refused.cause, refused.reason
    finally:
        processes.kill_all_descendants()
        for one in workers:
            one.read_output()
            outcome.log_tail = (outcome.log_tail + one.output.decode("utf-8", errors="replace"))[-4000:]
            one.close()
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _fork_worker(
    spec: EnvironmentSpec, place: launch.Workplace, seed: int, plan: ScoringPlan, batches: list[np.ndarray]
) -> _Worker:
    tokens = max(batch.size for batch in batches)
    inputs, outputs = mmap(-1, 8 * tokens), mmap(-1, 4 * tokens * plan.output_dim)
    weights = str(place.submission / client.SUBMISSION)

    def work(channel: Channel, build_model: object) -> None:
        worker.answer(channel, build_model, weights, inputs, outputs)  # type: ignore[arg-type]

    body = launch.worker_body(spec, place, seed, work)
    child = launch.fork_child(body, spec=spec, place=place, readable=[str(place.submission)])
    return _Worker(child, inputs, outputs)


def _wait_ready(one: _Worker, deadline_s: float) -> None:
    message = _receive(one, deadline_s, "to load the model")
    if "ready" not in message:
        raise _Refused(Cause.PROTOCOL, "the scoring worker broke the protocol")


def _run_pass(one: _Worker, plan: ScoringPlan, pass_index: int, deadline_s: float) -> None:
    for batch_index, batch_BT in enumerate(plan.passes[pass_index]):
        rows, length = batch_BT.shape
        np.frombuffer(one.inputs, dtype=np.int64, count=batch_BT.size)[:] = batch_BT.reshape(-1)
        try:
            one.child.channel.send_now({"shape": [rows, length]})
        except (Closed, ProtocolError):
            _raise_death(one)
        wanted = [rows, length, plan.output_dim]
        found = _receive(one, deadline_s, "for held-out inputs").get("shape")
        if found != wanted:
            raise _Refused(Cause.BAD_MODEL, f"logits have shape {found}, expected {wanted}")
        logits_BTV = np.frombuffer(one.outputs, dtype=np.float32, count=batch_BT.size * plan.output_dim)
        if wrong := plan.take(pass_index, batch_index, logits_BTV.reshape(wanted)):
            raise _Refused(Cause.BAD_MODEL, wrong)


def _receive(one: _Worker, deadline_s: float, what: str) -> dict[str, object]:
    """Wait for one message while keeping the worker's output pipe empty, so that a chatty worker cannot block."""
    with selectors.DefaultSelector() as selector:
        selector.register(one.child.channel.sock, selectors.EVENT_READ, "message")
        selector.register(one.child.output_fd, selectors.EVENT_READ, "output")
        while (left_s := deadline_s - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data == "output":
                    before = len(one.output)
                    one.read_output()
                    if len(one.output) == before:  # end of stream: the worker is gone or closed its output
                        selector.unregister(one.child.output_fd)
                    continue
                try:
                    messages = one.child.channel.receive_ready()
                except Closed:
                    _raise_death(one)
                except ProtocolError as error:
                    raise _Refused(Cause.PROTOCOL, str(error)) from error
                if len(messages) > 1:
                    raise _Refused(Cause.PROTOCOL, "the scoring worker answered more than it was asked")
                if messages:
                    return messages[0]
    raise _Refused(Cause.SLOW_MODEL, f"the scoring worker took too long {what}")


def _raise_death(one: _Worker) -> None:
    time.sleep(0.01)  # its last words may still be in the pipe
    one.read_output()
    text = one.output.decode("utf-8", errors="replace")
    raise _Refused(Cause.BAD_MODEL, last_line(text) or "the scoring worker died")
