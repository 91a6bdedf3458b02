"""The caller's side of a host: start it, have candidates run, hand it verdicts. Imports no torch.

with Host(spec) as host:
    result = host.run(source, seed=0, place=folder, judge=judge, on_event=print)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from frozen_env.contract import (
    DataMissing,
    FrozenEnvError,
    HostError,
    Judge,
    ManifestError,
    ProblemError,
    Progress,
    Report,
    RunResult,
    SandboxUnavailable,
    Verdict,
)
from frozen_env.description import read
from frozen_env.runtime import processes, toolchain
from frozen_env.runtime.channel import LineReader, encode
from frozen_env.runtime.gpu_lock import HeldGpu
from frozen_env.spec import EnvironmentSpec

START_LIMIT_S = 180.0  # importing torch from a cold disk
ANSWER_MARGIN_S = 60.0  # beyond every limit of a run, the host itself must be stuck
CLOSE_LIMIT_S = 5.0  # a host that is scoring does not listen: it is killed, its result is wanted no more
STDERR_TAIL_BYTES = 4000
RESULT_LINE_BYTES = 64 << 20

REFUSALS: dict[str, type[FrozenEnvError]] = {
    kind.__name__: kind for kind in (ManifestError, DataMissing, ProblemError, SandboxUnavailable)
}

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class Host:
    """A host process. Start it early: it warms up while other things happen; `run` waits for it.

    Raises HostError when the process cannot start, dies or hangs; the next `run` starts a new one. `gpu` is the one that
    its candidates see; the process inherits its lock.
    """

    module = "frozen_env.node"  # what the process runs

    def __init__(
        self, spec: EnvironmentSpec, data_dir: Path, stderr_path: Path | None = None, gpu: HeldGpu | None = None
    ) -> None:
        self.spec = spec
        self.data_dir = data_dir
        self.gpu = gpu
        self._stderr_path = stderr_path
        self._ended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = LineReader(RESULT_LINE_BYTES)
        self._inbox: list[Event] = []
        self._is_ready = False
        self._own_pids: list[int] = []  # the host itself and its zygote, below the guard that we started
        self.sandbox = ""
        self.environment_digest = ""

    def start(self) -> None:
        """Start the process without waiting for it. Raises HostError after kill()."""
        if self._ended:
            raise HostError("the host was ended; the experiment in flight is lost")
        if self._process is not None and self._process.poll() is None:
            return
        self._reader, self._inbox, self._is_ready = LineReader(RESULT_LINE_BYTES), [], False
        stderr = self._stderr_path.open("ab") if self._stderr_path else subprocess.DEVNULL
        command = [sys.executable, "-m", self.module, json.dumps(self.spec.to_json()), str(self.data_dir)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=self.environment(),
            pass_fds=(self.gpu.fd,) if self.gpu else (),
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,  # a Ctrl-C in the terminal reaches the campaign, which then ends us tidily
        )
        if self._stderr_path:
            stderr.close()  # type: ignore[union-attr]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the host process: nothing that is secret, and its GPU."""
        return host_environment(self.spec) | ({"CUDA_VISIBLE_DEVICES": self.gpu.name} if self.gpu else {})

    def run(
        self,
        source: str,
        *,
        seed: int,
        place: Path,
        judge: Judge | None = None,
        on_event: OnEvent = lambda _event: None,
    ) -> RunResult:
        """Train and score one candidate. `judge` is asked at every check; its stop verdict ends the run.

        `place` is a folder for the run's files. `on_event` sees the host's events: started, report, check, scoring, and
        {"event": "verdict", "verdict": Verdict}.
        """
        self.start()
        self.wait_ready()
        self._send({"run": {"source": source, "seed": seed, "place": str(place)}})
        spec = self.spec
        # The host ends what a candidate can draw out; the frozen code's limit counts as predictions may make it slow.
        deadline_s = time.monotonic() + spec.run_limit_s + read(spec.problem).limit_s + ANSWER_MARGIN_S
        reports: list[Report] = []
        verdicts: list[Verdict] = []
        while True:
            event = self._next_event(deadline_s)
            match event["event"]:
                case "result":
                    result = RunResult.from_json(event["result"])
                    return dataclasses.replace(result, verdicts=tuple(verdicts))
                case "refused":
                    raise self._refusal(event)
                case "report":
                    step, elapsed_s, fraction, loss, lr = event["report"]
                    reports.append(Report(step, elapsed_s, fraction, loss, lr))
                    on_event(event)
                case "check" if judge is not None:
                    verdict = judge(Progress(tuple(reports), event["elapsed_s"], event["budget_s"]))
                    verdicts.append(verdict)
                    on_event({"event": "verdict", "verdict": verdict})
                    if verdict.stop:
                        self._send({"stop": verdict.reason})
                case _:
                    on_event(event)

    def abort(self) -> None:
        """Ask for the end of the run in flight; safe from a signal handler or another thread."""
        with contextlib.suppress(HostError):
            self._send({"abort": True})

    def kill(self) -> None:
        """End the host and all that it runs at once, for good; safe from another thread, whose run raises HostError."""
        self._ended = True
        process = self._process
        if process is not None:
            for pid in [process.pid, *processes.descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def wait_ready(self) -> None:
        """Block until the host is warm.

        Raises ManifestError, DataMissing or SandboxUnavailable when it refuses, HostError when it cannot start.
        """
        deadline_s = time.monotonic() + START_LIMIT_S
        while not self._is_ready:
            event = self._next_event(deadline_s)
            if event["event"] == "refused":
                raise self._refusal(event)
            if event["event"] == "ready":
                self._is_ready = True
                self.sandbox, self.environment_digest = event["sandbox"], event["environment_digest"]
                self._own_pids = event["pids"]

    def running(self) -> list[int]:
        """Process ids of what the host runs now: a candidate or a scoring worker, and whatever it started."""
        if self._process is None:
            return []
        return [pid for pid in processes.descendants(self._process.pid) if pid not in self._own_pids]

    def close(self) -> None:
        """End the host and whatever it runs, and wait for it."""
        process, self._process, self._is_ready = self._process, None, False
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process = process
            self._kill()
        _close_pipes(process)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- messages ------------------------------------------------------------------------------------------------------
    def _send(self, message: Event) -> None:
        if self._process is None or self._process.stdin is None:
            raise HostError("the host is not running")
        try:
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()
        except OSError as error:
            raise HostError(self._last_words()) from error

    def _next_event(self, deadline_s: float) -> Event:
        while not self._inbox:
            assert self._process is not None
            assert self._process.stdout is not None
            fd = self._process.stdout.fileno()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
                self._kill()
                raise HostError(
                    "the host process did not answer in time and was killed; the experiment in flight is lost"
                )
            data = os.read(fd, 1 << 20)
            if not data:
                raise HostError(self._last_words())
            self._inbox += self._reader.feed(data)
        return self._inbox.pop(0)

    def _refusal(self, event: Event) -> FrozenEnvError:
        self.close()
        return REFUSALS.get(event["kind"], HostError)(event["reason"])

    def _kill(self) -> None:
        if self._process is None:
            return
        for pid in [self._process.pid, *processes.descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        _close_pipes(self._process)
        self._process = None

    def _last_words(self) -> str:
        """Say how the host died; its standard error is in the file that the caller named."""
        process, self._process = self._process, None
        code = process.wait() if process is not None else None
        if process is not None:
            _close_pipes(process)
        tail = ""
        if self._stderr_path and self._stderr_path.is_file():
            lines = (
                self._stderr_path.read_bytes()[-STDERR_TAIL_BYTES:]
                .decode("utf-8", errors="replace")
                .strip()
                .splitlines()
            )
            tail = f": {lines[-1]}" if lines else ""
        return f"the host process ended (exit code {code}){tail}"


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def host_environment(spec: EnvironmentSpec) -> dict[str, str]:
    """What a host may know of our environment: no keys, no tokens, no home folder.

    One thread for the numeric libraries, so that the host can fork; candidates set their own count.
    """
    allowed = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "VIRTUAL_ENV")
    kept = {key: os.environ[key] for key in allowed if key in os.environ}
    return kept | {
        "OMP_NUM_THREADS": str(spec.threads),
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": str(spec.threads),
        "GOMP_SPINCOUNT": "30000",  # threads that spin long make busy cores ten times slower; see docs/log.md
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        **toolchain.IN_PROCESS,
    }
