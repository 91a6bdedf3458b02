"""What a candidate's processes use together, looked at from outside a few times a second, and the limits on it.

The kernel's own limits (sandbox.limit_resources) stop one process; these stop all of them, and give the reason a name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from frozen_env.contract import Cause
from frozen_env.runtime import disk, processes
from frozen_env.runtime.launch import Child
from frozen_env.runtime.words import Output
from frozen_env.spec import EnvironmentSpec

LOOK_EVERY_S = 0.1
LOOKING_SHARE = 0.1  # of the host's time, at most, should looking take long
THREADS_PER_PROCESS = 16  # of process_limit, for all processes together
ENTRIES_PER_MB, MAX_ENTRIES = 64, 20_000  # files and folders in the scratch folder
CORES_SHARE, CORES_SLACK_S = 1.25, 1.0  # of `threads`: threads of ours take some, too, and clocks are coarse
OUTPUT_PER_LOG = 64  # it may print so many times what the log keeps; more is no log


class LimitBroken(Exception):
    """A limit was broken; `cause` and the message say which."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


@dataclass
class Limits:
    """Everything below the host but the zygote is the candidate's, also what was orphaned."""

    spec: EnvironmentSpec
    host_pid: int
    zygote_pid: int
    scratch: Path
    peak_memory_mb: float = 0.0
    admitted: int = 0  # processes that were let start
    _processor: processes.ProcessorTime = field(default_factory=lambda: processes.ProcessorTime(LOOK_EVERY_S))
    _before_training_s: float | None = None
    next_look_s: float = field(default_factory=time.monotonic)

    def pids(self) -> list[int]:
        return [pid for pid in processes.descendants(self.host_pid) if pid != self.zygote_pid]

    def look(self, output: Output) -> bool:
        """Look when it is time to, and say whether it was. Raises LimitBroken."""
        began_s = time.monotonic()
        if began_s < self.next_look_s:
            return False
        pids = self.pids()
        self._memory(pids)
        self._counts(pids)
        self._disk(pids)
        limit_bytes = OUTPUT_PER_LOG * self.spec.log_limit_kb * 1024
        if output.total_bytes > limit_bytes:
            raise LimitBroken(Cause.OUTPUT, f"printed more than {limit_bytes // 1024} KiB")
        now_s = time.monotonic()
        self.next_look_s = now_s + max(LOOK_EVERY_S, (now_s - began_s) / LOOKING_SHARE)
        return True

    def cores(self, training_s: float) -> None:
        """Look at what training has taken of the processors: a candidate with more cores than others is not better.

        Raises LimitBroken. Nobody is bound to cores: those would have to be shared out among all that run here, and be idle.
        """
        taken_s = self._processor.look(self.pids(), self.admitted)
        if self._before_training_s is None:
            self._before_training_s = taken_s
        most_s = self.spec.threads * (CORES_SHARE * training_s + CORES_SLACK_S)
        if taken_s - self._before_training_s > most_s:
            cores = (taken_s - self._before_training_s) / training_s
            raise LimitBroken(
                Cause.PROCESSES, f"kept {cores:.1f} cores busy, environment.threads is {self.spec.threads}"
            )

    def admit(self, child: Child) -> bool:
        """Answer processes that wait to be started. False when nobody is left who could ask. Raises LimitBroken."""
        assert child.listener is not None
        granted, refused = 0, False  # one that was granted a moment ago may not be there to be counted yet

        def allow() -> bool:
            nonlocal granted, refused
            refused = refused or len(self.pids()) + granted >= self.spec.process_limit
            granted += 1
            return not refused

        alive = child.listener.answer(allow)
        self.admitted += granted
        if refused:
            raise LimitBroken(Cause.PROCESSES, f"wanted more than {self.spec.process_limit} processes at a time")
        return alive

    def _memory(self, pids: list[int]) -> None:
        limit_mb = self.spec.memory_limit_mb
        used_mb = processes.memory_mb(pids)
        if used_mb > limit_mb and len(pids) > 1:
            used_mb = processes.exact_memory_mb(pids)
        self.peak_memory_mb = max(self.peak_memory_mb, used_mb)
        if used_mb > limit_mb:
            raise LimitBroken(Cause.OUT_OF_MEMORY, f"used {used_mb:.0f} MiB of memory, the limit is {limit_mb} MiB")

    def _counts(self, pids: list[int]) -> None:
        if len(pids) > self.spec.process_limit:  # without a listener, when the sandbox is off
            raise LimitBroken(Cause.PROCESSES, f"has {len(pids)} processes, the limit is {self.spec.process_limit}")
        threads, most = processes.threads(pids), THREADS_PER_PROCESS * self.spec.process_limit + 4 * self.spec.threads
        if threads > most:
            raise LimitBroken(Cause.PROCESSES, f"has {threads} threads, the limit is {most}")

    def _disk(self, pids: list[int]) -> None:
        limit_mb = self.spec.scratch_limit_mb
        most = min(MAX_ENTRIES, ENTRIES_PER_MB * limit_mb)
        used_bytes, entries, depth, closed = disk.usage(self.scratch, most)
        used_mb = (used_bytes + disk.deleted_bytes(pids)) / 2**20
        if used_mb > limit_mb:
            raise LimitBroken(Cause.DISK, f"wrote {used_mb:.0f} MiB, the limit is {limit_mb} MiB")
        if closed:
            raise LimitBroken(Cause.DISK, f"made a folder that cannot be looked into, the limit is {limit_mb} MiB")
        if entries > most:
            raise LimitBroken(Cause.DISK, f"made more than {most} files")
        if depth > disk.MAX_DEPTH:
            raise LimitBroken(Cause.DISK, f"made folders more than {disk.MAX_DEPTH} deep")
