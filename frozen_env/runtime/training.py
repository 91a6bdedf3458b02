"""Watch one training run: serve batches, keep time, read reports, end it. Runs in the host, single-threaded.

The clock starts when the candidate says start(). Time that start-up took beyond its allowance is taken from the budget.
At the end of the budget comes SIGTERM, time to finish a step and save (submission.py), then SIGKILL for the whole tree.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from mmap import mmap
from typing import Any

import numpy as np

from frozen_env.contract import Cause, Ending, Report
from frozen_env.runtime import client, launch, performance, processes
from frozen_env.runtime.channel import Closed, ProtocolError
from frozen_env.runtime.curve import Follower
from frozen_env.runtime.launch import Commands
from frozen_env.runtime.limits import LimitBroken, Limits
from frozen_env.runtime.problem import TrainingRows
from frozen_env.runtime.submission import Overrun, take_submission
from frozen_env.runtime.words import Output, last_line, one_line, out_of_memory, signal_name
from frozen_env.runtime.zygote import Zygote
from frozen_env.spec import EnvironmentSpec

BUFFER_BYTES = 4 << 20  # one batch of uint16 tokens
MAX_REPORTS = 10_000  # beyond it every second report is dropped, again and again
LARGEST_NUMBER = 2**53  # of a step; beyond it a float and a database column lose count
LARGEST_LOSS = 1e6  # nats per token; a larger one counts as infinite

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Training:
    """The state of one run, and in the end its outcome."""

    spec: EnvironmentSpec
    place: launch.Workplace
    rows: TrainingRows | None  # None where the training data are files
    emit: Emit
    overrun: Overrun
    commands: Commands | None = None
    forked_at_s: float = 0.0
    started_at_s: float | None = None
    ended_at_s: float | None = None
    ending: Ending | None = None
    cause: Cause = Cause.NONE
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    report_stride: int = 1
    reports_seen: int = 0
    last_heard_s: float = 0.0
    next_check_s: float = 0.0
    told: dict[str, float] = field(default_factory=dict)  # by the candidate, of its own performance
    sigterm_sent: bool = False
    tokens_served: int = 0
    submission_bytes: int = 0
    peak_memory_mb: float = 0.0
    log_tail: str = ""

    # --- clock ---------------------------------------------------------------------------------------------------------
    @property
    def budget_end_s(self) -> float:
        """When the training time is used up, on the monotonic clock."""
        latest_start_s = self.forked_at_s + self.spec.startup_allowance_s
        if self.started_at_s is None:
            return latest_start_s + self.spec.budget_s
        overrun_s = max(0.0, self.started_at_s - latest_start_s)
        return self.started_at_s + self.spec.budget_s - overrun_s

    @property
    def granted_s(self) -> float:
        """Training time from start() on: the budget, less what start-up took beyond its allowance; at least a millisecond."""
        began_s = self.forked_at_s if self.started_at_s is None else self.started_at_s
        return max(1e-3, self.budget_end_s - began_s)

    def finish(self, ending: Ending, cause: Cause = Cause.NONE, reason: str = "") -> None:
        """Record how the run ended; the first ending stands."""
        if self.ending is None:
            self.ending, self.cause, self.reason = ending, cause, one_line(reason)
            self.ended_at_s = time.monotonic()

    @property
    def startup_s(self) -> float:
        until_s = self.started_at_s or self.ended_at_s or time.monotonic()
        return until_s - self.forked_at_s

    @property
    def has_pace(self) -> bool:
        """Say whether more cores would be more training: of commands nobody knows, on a GPU they are not what it is made of."""
        return self.started_at_s is not None and self.commands is None and self.spec.device == "cpu"

    @property
    def training_s(self) -> float:
        if self.started_at_s is None:
            return 0.0
        return (self.ended_at_s or time.monotonic()) - self.started_at_s


def train(
    spec: EnvironmentSpec,
    place: launch.Workplace,
    seed: int,
    work: TrainingRows | Commands,
    zygote: Zygote,
    emit: Emit,
    inbox_fd: int,
    read_inbox: Callable[[], list[dict[str, Any]]],
) -> Training:
    """Run one candidate to its end and leave no process behind. The submission, if any, lies in place.submission.

    `work` is what it is given: rows that are served, or commands, whose clock starts with the process. What else it wrote
    lies in place.scratch, which is the caller's to remove. `inbox_fd` and `read_inbox` bring messages from the caller:
    {"stop": reason} and {"abort": true}.
    """
    commands = work if isinstance(work, Commands) else None
    rows = None if isinstance(work, Commands) else work
    run = Training(spec, place, rows, emit, Overrun(spec), commands)
    buffer, buffer_fd = shared_buffer(BUFFER_BYTES)
    run.forked_at_s = run.last_heard_s = time.monotonic()
    order = launch.Order(
        "candidate", str(place.source), str(place.scratch), [str(place.candidate)], seed, host_pid=os.getpid()
    )
    if commands is not None:
        place.furnish(place.scratch, {launch.DATA: commands.training_folder})
        readable = [*order.readable, commands.training_folder, *commands.readable]
        order = replace(order, readable=readable, command=list(commands.train), hidden=list(commands.hidden))
    child = zygote.start(order, [buffer_fd])
    os.close(buffer_fd)
    follower = Follower(commands.curve, lambda *report: _take_report(run, list(report))) if commands else None
    output = Output(child.output_fd, place.log, spec.log_limit_kb * 1024, follower)
    if commands is not None:
        _start(run)
    limits = Limits(spec, os.getpid(), zygote.pid, place.scratch)
    try:
        _Watch(run, child, buffer, output, limits).until_end(inbox_fd, read_inbox)
    finally:
        processes.kill_all_descendants(spare=zygote.pid)
        output.drain()
        child.close()
        buffer.close()
    run.log_tail = output.tail
    run.peak_memory_mb = max(run.peak_memory_mb, limits.peak_memory_mb)
    if run.ending is Ending.FINISHED:
        _check_submission(run)
    return run


def shared_buffer(size_bytes: int) -> tuple[mmap, int]:
    """Memory that a child can be given: our mapping of it, and its open file, to be closed once the child has it.

    Its size is sealed: a child that could shrink it would have us die of a bus error.
    """
    fd = os.memfd_create("shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return mmap(fd, size_bytes), fd


@dataclass
class _Watch:
    """The event loop around one run."""

    run: Training
    child: launch.Child
    buffer: mmap
    output: Output
    limits: Limits

    def until_end(self, inbox_fd: int, read_inbox: Callable[[], list[dict[str, Any]]]) -> None:
        run, child = self.run, self.child
        pid_fd = os.pidfd_open(child.pid)
        listener_fd = child.listener.fd if child.listener is not None else -1
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(os.close, pid_fd)
            for fd in (child.channel.sock.fileno(), child.output_fd, pid_fd, inbox_fd, listener_fd):
                if fd >= 0:
                    selector.register(fd, selectors.EVENT_READ)
            while run.ending is None:
                try:
                    _keep_time(run, child)
                    if self.limits.look(self.output) and run.has_pace:
                        self.limits.cores(run.training_s)
                    if run.ending is not None:
                        break
                    for key, _ in selector.select(self._pause_s()):
                        if key.fd == inbox_fd:
                            _hear_caller(run, read_inbox())
                        elif not self._hear(key.fd, pid_fd, listener_fd):
                            selector.unregister(key.fd)
                except LimitBroken as broken:
                    run.finish(Ending.CRASHED, broken.cause, str(broken))

    def _pause_s(self) -> float:
        return min(_next_event_s(self.run), self.limits.next_look_s) - time.monotonic()

    def _hear(self, fd: int, pid_fd: int, listener_fd: int) -> bool:
        """Take what one open file of the child has to say. False when it will say no more."""
        if fd == listener_fd:
            return self.limits.admit(self.child)
        if fd == self.child.output_fd:
            return self._read_output()
        if fd == pid_fd:
            with contextlib.suppress(Closed, ProtocolError):  # what it said last comes before its exit
                _hear_candidate(self.run, self.child, self.buffer)
            _read_exit(self.run, self.child, self.output)
            return False
        try:
            _hear_candidate(self.run, self.child, self.buffer)
        except Closed:
            return False
        except ProtocolError as error:
            self.run.finish(Ending.REJECTED, Cause.PROTOCOL, str(error))
        return True

    def _read_output(self) -> bool:
        """Take what was printed; where it is the curve, it is judged as reports are."""
        before = self.run.reports_seen
        try:
            return self.output.read()
        except ProtocolError as error:
            self.run.finish(Ending.REJECTED, Cause.PROTOCOL, str(error))
            return True
        finally:
            if self.run.reports_seen > before:
                _note_sign(self.run, "report")


def _next_event_s(run: Training) -> float:
    times = [run.budget_end_s]
    if run.started_at_s is not None:
        times.append(run.next_check_s)
    if run.sigterm_sent:
        times = [run.budget_end_s + run.spec.grace_s]
    return min(times)


def _keep_time(run: Training, child: launch.Child) -> None:
    spec, now_s = run.spec, time.monotonic()
    if run.started_at_s is None:
        if now_s >= run.budget_end_s:
            waited_s = spec.startup_allowance_s + spec.budget_s
            run.finish(Ending.TIMED_OUT, Cause.NO_START, f"did not call start() within {waited_s:g} s")
        return
    if now_s >= run.budget_end_s:
        if not run.sigterm_sent:
            run.sigterm_sent = True
            child.terminate()
        elif now_s >= run.budget_end_s + spec.grace_s:
            run.finish(
                Ending.TIMED_OUT, Cause.NO_SUBMISSION, f"no submit() within {spec.grace_s:g} s of the end of the budget"
            )
        return
    if now_s - run.last_heard_s > spec.silence_s and (run.commands is None or run.commands.curve):
        run.finish(Ending.CRASHED, Cause.SILENCE, _silence(run))
        return
    if now_s >= run.next_check_s:
        run.next_check_s = now_s + spec.check_every_s
        if run.reports:
            run.emit({"event": "check", "elapsed_s": now_s - run.started_at_s, "budget_s": run.granted_s})


def _silence(run: Training) -> str:
    if run.commands is None:
        return f"no report for {run.spec.silence_s:g} s"
    return (
        f"no line of the output matched run.curve for {run.spec.silence_s:g} s; print the loss more often, correct run.curve, "
        "or raise environment.silence_s"
    )


def _hear_caller(run: Training, messages: list[dict[str, Any]]) -> None:
    for message in messages:
        if "stop" in message:
            run.finish(Ending.STOPPED, Cause.VERDICT, str(message["stop"]))
        elif "abort" in message:
            run.finish(Ending.CRASHED, Cause.ABORTED, "the campaign was interrupted")


def _hear_candidate(run: Training, child: launch.Child, buffer: mmap) -> None:
    """Answer what the candidate says. Everything in a message is untrusted: types and ranges are checked here."""
    for message in child.channel.receive_ready():
        if "rows" in message:
            _note_sign(run, "request")
            child.channel.send_now(_serve(run, message["rows"], buffer))
        elif "report" in message:
            _take_report(run, message["report"])
            _note_sign(run, "report")
        elif "start" in message:
            _start(run)
            child.channel.send_now({"budget_s": run.granted_s})
        elif "submit" in message:
            if run.started_at_s is None:
                raise ProtocolError("a submission before start()")
            run.told = performance.numbers(message["submit"], performance.NUMBERS_TOLD)
            run.finish(Ending.FINISHED)
        else:
            raise ProtocolError(f"unknown message {sorted(message)[:3]!a}")


def _note_sign(run: Training, kind: str) -> None:
    """A request for text or a report says that it is still training."""
    if run.started_at_s is not None and (late := run.overrun.sign(kind, time.monotonic(), run.budget_end_s)):
        run.finish(Ending.TIMED_OUT, Cause.OVERRUN, late)


def _start(run: Training) -> None:
    if run.started_at_s is not None:
        return
    run.started_at_s = run.last_heard_s = time.monotonic()
    run.next_check_s = run.started_at_s + run.spec.check_every_s
    run.emit({"event": "started", "startup_s": run.startup_s})


def _serve(run: Training, rows: object, buffer: mmap) -> dict[str, Any]:
    width = run.spec.seq_len + 1
    most = BUFFER_BYTES // (2 * width)
    if not isinstance(rows, int) or not 1 <= rows <= most:
        return {"error": f"next_batch(rows) takes 1 to {most} rows, got {rows!r}"}
    if run.started_at_s is None:
        return {"error": "no text is served before start()"}
    if run.rows is not None and time.monotonic() < run.budget_end_s:
        tokens = run.rows.take(rows)
        view = np.frombuffer(buffer, dtype=np.uint16, count=rows * width)
        view[:] = tokens.reshape(-1)
        run.tokens_served += rows * run.spec.seq_len
    return {"rows": rows}


def _take_report(run: Training, report: object) -> None:
    if run.started_at_s is None:
        raise ProtocolError("a report before start()")
    step, loss, lr = _parse_report(report)
    run.last_heard_s = time.monotonic()
    elapsed_s = run.last_heard_s - run.started_at_s
    if not math.isfinite(loss):
        run.finish(Ending.CRASHED, Cause.NAN, f"the loss was {loss} at step {step}")
        return
    run.reports_seen += 1
    if run.reports_seen % run.report_stride:
        return
    fraction = min(1.0, max(1e-9, elapsed_s / run.granted_s))
    kept = Report(step=step, elapsed_s=elapsed_s, fraction=fraction, loss=loss, lr=lr)
    run.reports.append(kept)
    run.emit({"event": "report", "report": [kept.step, kept.elapsed_s, kept.fraction, kept.loss, kept.lr]})
    if len(run.reports) > MAX_REPORTS:
        run.reports = run.reports[::2]
        run.report_stride *= 2


def _parse_report(report: object) -> tuple[int, float, float | None]:
    """Return step, loss and learning rate of a candidate's message. Raises ProtocolError unless each is a number."""
    if not isinstance(report, list) or len(report) != 3:
        raise ProtocolError("a report is [step, loss, lr]")
    step, *numbers = report
    if type(step) is not int or abs(step) > LARGEST_NUMBER:
        raise ProtocolError("a report's step is an integer of ordinary size")
    try:
        loss, lr = (None if number is None else float(number) for number in numbers if type(number) is not str)
    except (TypeError, ValueError, OverflowError):
        raise ProtocolError("a report is [integer, number, number or null]") from None
    if loss is None:
        raise ProtocolError("a report's loss is a number")
    if abs(loss) > LARGEST_LOSS:
        loss = math.copysign(math.inf, loss)
    return step, loss, lr if lr is not None and math.isfinite(lr) else None


def _read_exit(run: Training, child: launch.Child, output: Output) -> None:
    """The candidate's main process ended by itself; say why."""
    _, status, _ = os.wait4(child.pid, 0)
    output.drain()
    code = os.waitstatus_to_exitcode(status)
    if run.commands is not None and (code == 0 or run.sigterm_sent):
        run.finish(Ending.FINISHED)  # whether it left a model is looked at when all of it has ended
    elif code < 0:
        run.finish(Ending.CRASHED, Cause.SIGNAL, f"killed by {signal_name(-code)}")
    elif code > 0 and out_of_memory(output.tail):
        run.finish(Ending.CRASHED, Cause.OUT_OF_MEMORY, last_line(output.tail))
    elif code > 0:
        run.finish(Ending.CRASHED, Cause.EXCEPTION, last_line(output.tail) or f"exit code {code}")
    else:
        run.finish(Ending.CRASHED, Cause.NO_SUBMISSION, "the script ended without submit(model)")


def _check_submission(run: Training) -> None:
    """Take the submission out of the candidate's reach, unless it is none or came too late to be honest."""
    assert run.ended_at_s is not None
    name = client.SUBMISSION if run.commands is None else run.commands.model
    wrong, size_bytes = take_submission(run.place, run.spec.submission_limit_mb, name)
    run.submission_bytes = size_bytes
    if wrong and run.commands is not None and not (run.place.scratch / name).exists():
        run.ending, run.cause, run.reason = Ending.CRASHED, Cause.NO_SUBMISSION, wrong
    elif wrong:
        run.ending, run.cause, run.reason = Ending.CRASHED, Cause.BAD_SUBMISSION, wrong
    elif late := run.overrun.too_late(run.ended_at_s - run.budget_end_s, size_bytes):
        run.ending, run.cause, run.reason = Ending.TIMED_OUT, Cause.OVERRUN, late
