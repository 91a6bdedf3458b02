"""What is handed in, and when: a regular file of bounded size, soon after the end of the budget."""

from __future__ import annotations

import os
import stat
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from frozen_env.runtime import client
from frozen_env.runtime.launch import Workplace
from frozen_env.spec import EnvironmentSpec


def take_submission(place: Workplace, limit_mb: int, name: str = client.SUBMISSION) -> tuple[str, int]:
    """Move the submitted model out of the candidate's reach. Return what is wrong with it, or '', and its bytes.

    It is only moved, never parsed: a confined worker loads it.
    """
    missing = "submit() was said but no file was written" if name == client.SUBMISSION else f"training left no {name}"
    return take_file(place.scratch, name, place.submission, limit_mb, "the submission", missing)


def take_file(scratch: Path, name: str, into: Path, limit_mb: int, what: str, missing: str) -> tuple[str, int]:
    """Move one regular file out of a scratch folder whose processes have ended. Return what is wrong, or '', and its bytes.

    No link is followed, neither the file nor a folder on the way: it could lead to what only we may read.
    """
    path = scratch / name
    try:
        info = os.lstat(path)
    except OSError:
        return missing, 0
    limit_bytes = limit_mb * 2**20
    straight = os.path.realpath(path.parent) == os.path.join(os.path.realpath(scratch), *Path(name).parent.parts)
    if not straight or not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        return f"{what} is not a regular file", 0
    if info.st_size > limit_bytes:
        return f"{what} is too large, the limit is {limit_bytes} bytes", 0
    target = into / Path(name).name
    os.replace(path, target)
    return "", info.st_size


@dataclass
class Overrun:
    """How long after the end of the budget a candidate may still be at work.

    It may finish the step that it is in and save its weights, and no more: what a step takes is seen from its requests for
    text and its reports, what saving takes follows from the size of the file. Beyond that it trained on.

    A step takes the median of the latest pauses between two signs of a kind, the longer one of the two kinds: text may be asked
    for several times a step, and not every step is reported. The longest pause would be one that a candidate makes up, once, to
    train on for as long at the end. Honest long pauses are no steps: compilation comes at the start, and an evaluation need not
    begin when the time is up. The latest pauses count, as steps may grow in a run.
    """

    spec: EnvironmentSpec
    pauses_s: dict[str, deque[float]] = field(default_factory=dict)  # by kind of sign
    last_s: dict[str, float] = field(default_factory=dict)  # of the last request and of the last report

    SAVING_BYTES_PER_S: ClassVar[float] = 100e6
    LATEST: ClassVar[int] = 15

    def sign(self, kind: str, now_s: float, budget_end_s: float) -> str:
        """Take note of a request or a report. Say why it comes too late, or ''."""
        if now_s < budget_end_s:
            if kind in self.last_s:
                self.pauses_s.setdefault(kind, deque(maxlen=self.LATEST)).append(now_s - self.last_s[kind])
            self.last_s[kind] = now_s
            return ""
        over_s = now_s - budget_end_s
        return f"still training {over_s:.1f} s after the end of the budget" if over_s > self.allowed_s(0) else ""

    @property
    def step_s(self) -> float:
        return max((statistics.median_high(pauses_s) for pauses_s in self.pauses_s.values()), default=0.0)

    def allowed_s(self, size_bytes: int) -> float:
        saving_s = size_bytes / self.SAVING_BYTES_PER_S
        return min(self.spec.grace_s, self.spec.overrun_s + self.step_s + saving_s)

    def too_late(self, overrun_s: float, size_bytes: int) -> str:
        """Say why a submission that came overrun_s after the end of the budget is refused, or ''."""
        allowed_s = self.allowed_s(size_bytes)
        if overrun_s <= allowed_s:
            return ""
        return f"submitted {overrun_s:.1f} s after the end of the budget; a last step and saving take {allowed_s:.1f} s at most"
