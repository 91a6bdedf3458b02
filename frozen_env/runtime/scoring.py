"""Score a submission: fresh confined workers answer held-out inputs, the trusted side measures the answers.

Each pass of the problem's scoring plan has a worker process of its own, forked before it hears anything of the inputs and
ended before the next begins: no memory, folder, lock or descriptor leads from one to the other. Logits come back through
shared memory as float32, a batch at a time, never all of them at once; nothing that a worker sends is trusted beyond its
shape.

A worker that has seen held-out inputs could tell them, and reasons and logs reach the policy. So from the first held-out
input of a scoring on, reasons are fixed words and known names, and what workers print is dropped.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

import numpy as np

from frozen_env.contract import Cause, Score
from frozen_env.runtime import client, disk, launch, performance, processes
from frozen_env.runtime.channel import Closed, ProtocolError
from frozen_env.runtime.effort import Allowance, Effort
from frozen_env.runtime.limits import LimitBroken, Limits
from frozen_env.runtime.problem import ScoringPlan, Served
from frozen_env.runtime.training import shared_buffer
from frozen_env.runtime.words import Output, known_error, last_line, one_line, out_of_memory
from frozen_env.runtime.zygote import Zygote
from frozen_env.spec import EnvironmentSpec

WITHHELD = "what it printed is withheld, as it may hold them"
NOT_FOR_LEARNING = "this time is for loading and answering, not for learning or compiling (environment.settling_s)"


@dataclass
class Scoring:
    """Outcome of scoring: a score, or a cause with its reason."""

    score: Score | None = None
    cause: Cause = Cause.NONE
    reason: str = ""
    seconds: float = 0.0
    log_tail: str = ""
    peak_memory_mb: float = 0.0
    told: dict[str, float] = field(default_factory=dict)  # by the worker, of the model
    device_name: str = ""  # as the worker tells it


class Refused(Exception):
    """The submission gets no score; `cause` and the message say why."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(one_line(reason))
        self.cause = cause


@dataclass
class _Scorer:
    """Runs the passes of one plan, one worker at a time."""

    spec: EnvironmentSpec
    place: launch.Workplace
    plan: ScoringPlan
    seed: int
    allowance: Allowance
    zygote: Zygote
    inbox_fd: int
    read_inbox: Callable[[], list[dict[str, Any]]]
    deadline_s: float  # of the whole scoring, on the monotonic clock
    has_asked: bool = False  # held-out inputs were handed out: no words of a worker leave any more
    log: str = ""
    peak_memory_mb: float = 0.0
    startup_s: float = 0.0
    answering_s: float = 0.0
    told: dict[str, float] = field(default_factory=dict)
    device_name: str = ""

    def run_pass(self, batches: list[np.ndarray], take: Callable[[int, np.ndarray], str], seed: int) -> None:
        """Have a fresh worker answer batches and hand each answer to `take`. Raises Refused."""
        began_s = time.monotonic()
        one = self._start_worker(batches, seed)
        try:
            self._have_loaded(one)
            ready = self._receive(one)
            if "ready" not in ready:
                raise Refused(Cause.PROTOCOL, "the scoring worker broke the protocol")
            if not self.has_asked:
                self.told = performance.numbers(ready, ("parameters", "forward_flops_per_token"))
                self.device_name = one_line(str(ready.get("device_name", "")))
            one.effort.begin(one.limits.pids(), self.allowance.settling_s, one.limits.admitted)
            ready_s = time.monotonic()
            self.startup_s += ready_s - began_s
            try:
                self._ask(one, batches, take, ready_s + self.spec.score_limit_s - self.answering_s)
            finally:
                self.answering_s += time.monotonic() - ready_s
        except LimitBroken as broken:
            raise Refused(broken.cause, str(broken)) from broken
        finally:
            self._end_worker(one)

    def public_log(self) -> str:
        """What workers printed before the first held-out input."""
        return self.log + (f"(scoring: from the first held-out input on, {WITHHELD})\n" if self.has_asked else "")

    def _start_worker(self, batches: list[np.ndarray], seed: int) -> _Worker:
        tokens = max(batch.size for batch in batches)
        inputs, inputs_fd = shared_buffer(8 * tokens)
        outputs, outputs_fd = shared_buffer(4 * tokens * self.plan.output_dim)
        scratch = self.place.scoring_scratch
        disk.remove(scratch)
        scratch.mkdir()
        readable = [str(self.place.source.parent), str(self.place.submission)]
        weights = str(self.place.submission / client.SUBMISSION)
        order = launch.Order("worker", str(self.place.source), str(scratch), readable, seed, os.getpid(), weights)
        child = self.zygote.start(order, [inputs_fd, outputs_fd])
        os.close(inputs_fd)
        os.close(outputs_fd)
        limits = Limits(self.spec, os.getpid(), self.zygote.pid, scratch)
        return _Worker(child, inputs, outputs, limits, Effort(self.spec))

    def _have_loaded(self, one: _Worker) -> None:
        """Tell the worker to load the model once it says that it can. Until then it runs our code alone."""
        if "warm" not in self._receive(one):
            raise Refused(Cause.PROTOCOL, "the scoring worker broke the protocol")
        one.effort.begin(one.limits.pids(), self.allowance.loading_s, one.limits.admitted)
        try:
            one.child.channel.send_now({"load": True})
        except (Closed, ProtocolError) as error:
            raise self._death(one) from error

    def _end_worker(self, one: _Worker) -> None:
        processes.kill_all_descendants(spare=self.zygote.pid)
        one.output.drain()
        if not self.has_asked:
            self.log = one.output.tail
        self.peak_memory_mb = max(self.peak_memory_mb, one.limits.peak_memory_mb)
        one.close()
        disk.remove(one.limits.scratch)

    def _ask(
        self, one: _Worker, batches: list[np.ndarray], take: Callable[[int, np.ndarray], str], deadline_s: float
    ) -> None:
        if not self.has_asked:
            one.output.drain()
            self.log, self.has_asked = one.output.tail, True
        for index, batch_BT in enumerate(batches):
            rows, length = batch_BT.shape
            np.frombuffer(one.inputs, dtype=np.int64, count=batch_BT.size)[:] = batch_BT.reshape(-1)
            try:
                one.child.channel.send_now({"shape": [rows, length]})
            except (Closed, ProtocolError) as error:
                raise self._death(one) from error
            wanted = [rows, length, self.plan.output_dim]
            one.effort.resume(self.allowance.answering_s(batch_BT.size, 4 * math.prod(wanted)))
            found = self._receive(one, deadline_s).get("shape")
            if found != wanted:
                raise Refused(Cause.BAD_SHAPE, _wrong_shape(found, wanted))
            # The worker could still write to these; take() must read each of them into its own memory once. It hears
            # the next question only when they have been measured: it must not answer this one in the light of that.
            logits_BTV = np.frombuffer(one.outputs, dtype=np.float32, count=batch_BT.size * wanted[2])
            if wrong := take(index, logits_BTV.reshape(wanted)):
                raise Refused(Cause.NOT_FINITE, wrong)

    def _receive(self, one: _Worker, answers_end_s: float = math.inf) -> dict[str, object]:
        """Wait for one message, while limits, the caller and the worker's output are looked after."""
        deadline_s = min(answers_end_s, self.deadline_s)
        with selectors.DefaultSelector() as selector:
            files = [one.child.channel.sock.fileno(), one.child.output_fd, self.inbox_fd]
            if one.child.listener is not None:
                files.append(one.child.listener.fd)
            for fd in files:
                if fd not in one.silent:
                    selector.register(fd, selectors.EVENT_READ)
            while (left_s := deadline_s - time.monotonic()) > 0:
                if one.limits.look(one.output):
                    self._see_effort(one)
                pause_s = max(0.0, min(left_s, one.limits.next_look_s - time.monotonic()))
                for key, _ in selector.select(pause_s):
                    if key.fd == self.inbox_fd:
                        if any("abort" in message for message in self.read_inbox()):
                            raise Refused(Cause.ABORTED, "the campaign was interrupted")
                    elif key.fd == one.child.channel.sock.fileno():
                        if message := self._hear(one):
                            self._see_effort(one)
                            one.effort.pause()
                            return message
                    elif not (one.output.read() if key.fd == one.child.output_fd else one.limits.admit(one.child)):
                        selector.unregister(key.fd)
                        one.silent.add(key.fd)
        if deadline_s == answers_end_s:
            reason = f"the scoring worker took more than {self.spec.score_limit_s:g} s for held-out inputs"
        else:
            reason = f"scoring took more than {self.spec.scoring_limit_s:g} s, the loading of the model included"
        raise Refused(Cause.SLOW_MODEL, reason)

    def _see_effort(self, one: _Worker) -> None:
        if not one.effort.is_too_much(one.limits.pids(), one.limits.admitted):
            return
        doing = "answering held-out inputs" if self.has_asked else "loading the model"
        raise Refused(Cause.OVERRUN, f"{doing} took too long for a model that was trained already: {NOT_FOR_LEARNING}")

    def _hear(self, one: _Worker) -> dict[str, Any] | None:
        try:
            messages = one.child.channel.receive_ready()
        except Closed as error:
            raise self._death(one) from error
        except ProtocolError as error:
            raise Refused(Cause.PROTOCOL, "the scoring worker sent what is no message") from error
        if len(messages) > 1:
            raise Refused(Cause.PROTOCOL, "the scoring worker answered more than it was asked")
        return messages[0] if messages else None

    def _death(self, one: _Worker) -> Refused:
        time.sleep(0.01)  # its last words may still be in the pipe
        one.output.drain()
        words = one.output.tail
        cause = Cause.OUT_OF_MEMORY if out_of_memory(words) else Cause.BAD_MODEL
        if not self.has_asked:
            return Refused(cause, last_line(words) or "the scoring worker died")
        name = known_error(words) or "the scoring worker died"
        return Refused(cause, f"{name} on held-out inputs; {WITHHELD}. A training batch, in eval mode, may show it")


@dataclass
class _Worker:
    child: launch.Child
    inputs: mmap
    outputs: mmap
    limits: Limits
    effort: Effort
    output: Output = field(init=False)
    silent: set[int] = field(default_factory=set)  # open files at their end

    def __post_init__(self) -> None:
        self.output = Output(self.child.output_fd)

    def close(self) -> None:
        self.child.close()
        for buffer in (self.inputs, self.outputs):
            with contextlib.suppress(BufferError):  # an error on its way still refers to an array in it
                buffer.close()


def score(
    spec: EnvironmentSpec,
    place: launch.Workplace,
    problem: Served,
    seed: int,
    secret: int,
    allowance: Allowance,
    zygote: Zygote,
    inbox_fd: int,
    read_inbox: Callable[[], list[dict[str, Any]]],
) -> Scoring:
    """Measure place.submission with problem's metric. Leaves no process behind. {"abort": true} of the caller ends it.

    `seed` is the run's. `secret` fixes what is probed and how: a fresh one for each scoring, so that no candidate knows it.
    It ends within spec.scoring_limit_s, but for what the trusted side takes; of that the workers may use their allowance.
    """
    began_s = time.monotonic()
    plan = problem.scoring_plan(seed, spec.device, secret)
    deadline_s = time.monotonic() + spec.scoring_limit_s
    scorer = _Scorer(spec, place, plan, seed, allowance, zygote, inbox_fd, read_inbox, deadline_s)
    outcome = Scoring()
    try:
        for index, batches in enumerate(plan.passes):
            scorer.run_pass(
                batches, functools.partial(plan.take, index), seed
            )  # one seed: it tells nothing of the pass
        if plan.differs():
            raise _diagnosed(scorer, plan)
        measured_s = time.monotonic()
        found = plan.result()
        outcome.score = Score(
            metric=problem.metric,
            value=float(found["value"]),
            direction=problem.direction,
            held_out_tokens=int(found["held_out_tokens"]),
            held_out_bytes=int(found["held_out_bytes"]),
            seconds=scorer.answering_s + time.monotonic() - measured_s,
            startup_s=scorer.startup_s,
            probe_max_diff=float(found["probe_max_diff"]),
        )
    except Refused as refused:
        outcome.cause, outcome.reason = refused.cause, str(refused)
    outcome.log_tail, outcome.peak_memory_mb = scorer.public_log(), scorer.peak_memory_mb
    outcome.told, outcome.device_name = scorer.told, scorer.device_name
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _diagnosed(scorer: _Scorer, plan: ScoringPlan) -> Refused:
    """Say why answers differ, with two more workers: both get the very same question, without a spliced future.

    The second has another seed than all before it, so that chance shows as such. There is no score to be gained any more.
    """
    for attempt, seed in enumerate((scorer.seed, secrets.randbits(63))):
        scorer.run_pass(plan.repeated, functools.partial(plan.take_repeated, attempt), seed)
    cause, reason = plan.explain()
    return Refused(cause, reason)


def _wrong_shape(found: object, wanted: list[int]) -> str:
    """Say what is wrong with a shape without its numbers: a worker could spell what it has seen with them."""
    if not isinstance(found, list) or len(found) != len(wanted):
        return f"forward() returned no logits [B, T, V], expected shape {wanted}"
    axes = zip(("rows", "positions", "token ids"), found, wanted, strict=True)
    wrong = [name for name, size, right in axes if size != right]
    return f"logits have a wrong number of {' and '.join(wrong)}, expected shape {wanted}"
