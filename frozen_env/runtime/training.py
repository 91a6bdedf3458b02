"""Watch one training run: serve batches, keep time, read reports, end it. Runs in the host, single-threaded.

The clock starts when the candidate says start(). Time that start-up took beyond its allowance is taken from the budget.
At the end of the budget comes SIGTERM, a short grace for submit(), then SIGKILL for the whole tree.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shutil
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from frozen_env.contract import Cause, Ending, Report
from frozen_env.runtime import client, launch, processes
from frozen_env.runtime.channel import Closed, ProtocolError
from frozen_env.runtime.problem import TrainingRows
from frozen_env.spec import EnvironmentSpec

BUFFER_BYTES = 4 << 20  # one batch of uint16 tokens
MEMORY_POLL_S = 0.2
MAX_REPORTS = 10_000  # beyond it every second report is dropped, again and again
LOG_TAIL_CHARS = 4000
OUT_OF_MEMORY_WORDS = ("out of memory", "MemoryError", "can't allocate memory")

Emit = Callable[[dict[str, Any]], None]


@dataclass
class Training:
    """The state of one run, and in the end its outcome."""

    spec: EnvironmentSpec
    place: launch.Workplace
    rows: TrainingRows
    emit: Emit
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
    submitted: bool = False
    sigterm_sent: bool = False
    tokens_served: int = 0
    peak_memory_mb: float = 0.0
    log_bytes: int = 0
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

    def finish(self, ending: Ending, cause: Cause = Cause.NONE, reason: str = "") -> None:
        """Record how the run ended; the first ending stands."""
        if self.ending is None:
            self.ending, self.cause, self.reason = ending, cause, reason
            self.ended_at_s = time.monotonic()

    @property
    def startup_s(self) -> float:
        until_s = self.started_at_s or self.ended_at_s or time.monotonic()
        return until_s - self.forked_at_s

    @property
    def training_s(self) -> float:
        if self.started_at_s is None:
            return 0.0
        return (self.ended_at_s or time.monotonic()) - self.started_at_s


def train(
    spec: EnvironmentSpec,
    place: launch.Workplace,
    seed: int,
    rows: TrainingRows,
    emit: Emit,
    inbox_fd: int,
    read_inbox: Callable[[], list[dict[str, Any]]],
) -> Training:
    """Run one candidate to its end and leave no process behind. The submission, if any, lies in place.submission.

    `inbox_fd` and `read_inbox` bring messages from the caller: {"stop": reason} and {"abort": true}.
    """
    run = Training(spec, place, rows, emit)
    buffer_fd = os.memfd_create("batches")
    os.truncate(buffer_fd, BUFFER_BYTES)
    buffer = mmap(buffer_fd, BUFFER_BYTES)
    os.close(buffer_fd)
    run.forked_at_s = run.last_heard_s = time.monotonic()
    child = launch.fork_child(launch.candidate_body(spec, place, seed, buffer), spec=spec, place=place, readable=[])
    try:
        _watch(run, child, buffer, inbox_fd, read_inbox)
    finally:
        processes.kill_all_descendants()
        _drain_log(run, child)
        child.channel.close()
        os.close(child.output_fd)
        buffer.close()
    if run.submitted and run.ending is Ending.FINISHED:
        _take_submission(run)
    shutil.rmtree(place.scratch, ignore_errors=True)
    return run


def _watch(
    run: Training, child: launch.Child, buffer: mmap, inbox_fd: int, read_inbox: Callable[[], list[dict[str, Any]]]
) -> None:
    pid_fd = os.pidfd_open(child.pid)
    os.set_blocking(child.output_fd, False)
    next_memory_poll_s = 0.0
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        stack.callback(os.close, pid_fd)
        for fd in (child.channel.sock.fileno(), child.output_fd, pid_fd, inbox_fd):
            selector.register(fd, selectors.EVENT_READ)
        while run.ending is None:
            now_s = time.monotonic()
            _keep_time(run, child, now_s)
            if now_s >= next_memory_poll_s:
                next_memory_poll_s = now_s + MEMORY_POLL_S
                _watch_memory(run, child)
            if run.ending is not None:
                break
            for key, _ in selector.select(_next_event_s(run, next_memory_poll_s) - now_s):
                if key.fd == inbox_fd:
                    _hear_caller(run, read_inbox())
                elif key.fd == child.output_fd:
                    if not _read_log(run, child):
                        selector.unregister(child.output_fd)
                elif key.fd == pid_fd:
                    with contextlib.suppress(Closed, ProtocolError):  # what it said last comes before its exit
                        _hear_candidate(run, child, buffer)
                    _read_exit(run, child)
                    selector.unregister(pid_fd)
                else:
                    try:
                        _hear_candidate(run, child, buffer)
                    except Closed:
                        selector.unregister(child.channel.sock)
                    except ProtocolError as error:
                        run.finish(Ending.REJECTED, Cause.PROTOCOL, str(error))


def _next_event_s(run: Training, next_memory_poll_s: float) -> float:
    times = [next_memory_poll_s, run.budget_end_s]
    if run.started_at_s is not None:
        times.append(run.next_check_s)
    if run.sigterm_sent:
        times[1] += run.spec.grace_s
    return min(times)


def _keep_time(run: Training, child: launch.Child, now_s: float) -> None:
    spec = run.spec
    if run.started_at_s is None:
        if now_s >= run.budget_end_s:
            waited_s = spec.startup_allowance_s + spec.budget_s
            run.finish(Ending.TIMED_OUT, Cause.NO_START, f"did not call start() within {waited_s:g} s")
        return
    if now_s >= run.budget_end_s:
        if not run.sigterm_sent:
            run.sigterm_sent = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        elif now_s >= run.budget_end_s + spec.grace_s:
            run.finish(
                Ending.TIMED_OUT, Cause.NO_SUBMISSION, f"no submit() within {spec.grace_s:g} s of the end of the budget"
            )
        return
    if now_s - run.last_heard_s > spec.silence_s:
        run.finish(Ending.CRASHED, Cause.SILENCE, f"no report for {spec.silence_s:g} s")
        return
    if now_s >= run.next_check_s:
        run.next_check_s += spec.check_every_s
        if run.reports:
            run.emit({"event": "check", "elapsed_s": now_s - run.started_at_s})


def _watch_memory(run: Training, child: launch.Child) -> None:
    used_mb = processes.tree_memory_mb(child.pid)
    run.peak_memory_mb = max(run.peak_memory_mb, used_mb)
    if used_mb > run.spec.memory_limit_mb:
        run.finish(
            Ending.CRASHED, Cause.OUT_OF_MEMORY, f"used {used_mb:.0f} MiB, the limit is {run.spec.memory_limit_mb} MiB"
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
            child.channel.send_now(_serve(run, message["rows"], buffer))
        elif "report" in message:
            _take_report(run, message["report"])
        elif "start" in message:
            _start(run)
            child.channel.send_now({"ok": True})
        elif "submit" in message:
            run.submitted = True
            run.finish(Ending.FINISHED)
        else:
            raise ProtocolError(f"unknown message {sorted(message)[:3]}")


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
    if time.monotonic() < run.budget_end_s:
        tokens = run.rows.take(rows)
        view = np.frombuffer(buffer, dtype=np.uint16, count=rows * width)
        view[:] = tokens.reshape(-1)
        run.tokens_served += rows * run.spec.seq_len
    return {"rows": rows}


def _take_report(run: Training, report: object) -> None:
    if run.started_at_s is None:
        raise ProtocolError("a report before start()")
    if not isinstance(report, list) or len(report) != 3:
        raise ProtocolError("a report is [step, loss, lr]")
    step, loss, lr = report
    if (
        not isinstance(step, int)
        or not isinstance(loss, float | int)
        or not (lr is None or isinstance(lr, float | int))
    ):
        raise ProtocolError("a report is [integer, number, number or null]")
    run.last_heard_s = time.monotonic()
    elapsed_s = run.last_heard_s - run.started_at_s
    if not math.isfinite(loss):
        run.finish(Ending.CRASHED, Cause.NAN, f"the loss was {loss} at step {step}")
        return
    if lr is not None and not math.isfinite(lr):
        lr = None
    run.reports_seen += 1
    if run.reports_seen % run.report_stride:
        return
    fraction = min(1.0, max(1e-9, elapsed_s / run.spec.budget_s))
    kept = Report(step=step, elapsed_s=elapsed_s, fraction=fraction, loss=float(loss), lr=lr)
    run.reports.append(kept)
    run.emit({"event": "report", "report": [kept.step, kept.elapsed_s, kept.fraction, kept.loss, kept.lr]})
    if len(run.reports) > MAX_REPORTS:
        run.reports = run.reports[::2]
        run.report_stride *= 2


def _read_log(run: Training, child: launch.Child) -> bool:
    """Append output to the log up to its limit; what is beyond it is read and dropped. False at end of stream."""
    try:
        data = os.read(child.output_fd, 65536)
    except BlockingIOError:
        return True
    if not data:
        return False
    room = run.spec.log_limit_kb * 1024 - run.log_bytes
    if room > 0:
        with run.place.log.open("ab") as log:
            log.write(data[:room])
    run.log_bytes += len(data)
    text = data.decode("utf-8", errors="replace")
    run.log_tail = (run.log_tail + text)[-LOG_TAIL_CHARS:]
    return True


def _drain_log(run: Training, child: launch.Child) -> None:
    for _ in range(1024):  # bounded: the writers are dead, a pipe holds 64 KiB
        before = run.log_bytes
        if not _read_log(run, child) or run.log_bytes == before:
            return


def _read_exit(run: Training, child: launch.Child) -> None:
    """The candidate's main process ended by itself; say why."""
    _, status, usage = os.wait4(child.pid, 0)
    run.peak_memory_mb = max(run.peak_memory_mb, usage.ru_maxrss / 1024)
    _drain_log(run, child)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        run.finish(Ending.CRASHED, Cause.SIGNAL, f"killed by {name}")
    elif code > 0 and any(word in run.log_tail for word in OUT_OF_MEMORY_WORDS):
        run.finish(Ending.CRASHED, Cause.OUT_OF_MEMORY, last_line(run.log_tail))
    elif code > 0:
        run.finish(Ending.CRASHED, Cause.EXCEPTION, last_line(run.log_tail) or f"exit code {code}")
    else:
        run.finish(Ending.CRASHED, Cause.NO_SUBMISSION, "the script ended without submit(model)")


def last_line(log: str) -> str:
    """The last non-empty line of a log, printable and short: usually the exception."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in lines[-1])[:300] if lines else ""


def _take_submission(run: Training) -> None:
    """Move the submitted weights out of the candidate's reach; only a regular file of bounded size is taken."""
    path = Path(run.place.scratch) / client.SUBMISSION
    try:
        info = os.lstat(path)
    except OSError:
        info = None
    limit_bytes = run.spec.submission_limit_mb * 2**20
    if info is None:
        problem = "submit() was said but no file was written"
    elif not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        problem = "the submission is not a regular file"
    elif info.st_size > limit_bytes:
        problem = f"the submission has {info.st_size} bytes, the limit is {limit_bytes}"
    else:
        os.replace(path, run.place.submission / client.SUBMISSION)
        return
    run.ending, run.cause, run.reason = Ending.CRASHED, Cause.BAD_SUBMISSION, problem
