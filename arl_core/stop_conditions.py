"""When a campaign's start has done enough: a deadline, a number of experiments, GPU hours, or a plateau.

Each start of a campaign (by hand, or by tonight's schedule) has its own StopConditions: hours, experiments, GPU hours and
the plateau count from this start on. Hours are measured on a clock that does not jump; `until` is read off the wall.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from arl_core.config import StopSettings
from arl_core.outcome import seconds_of
from arl_core.records import Experiment
from frozen_env.contract import Ending, RunResult, Status

REMEMBERED = 16  # runs: the first one's compiling is forgotten by then


class StopConditions:
    """Says why to stop, or ''. None is begun that could not end in time: `experiment_s` is what one run takes at least, and the
    longest of the latest whole ones takes its place, as start-up and scoring cost more than a budget tells."""

    def __init__(
        self,
        settings: StopSettings,
        experiment_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self.settings = settings
        self._experiment_s = experiment_s
        self._clock, self._wall = clock, wall
        self._began_s = clock()
        self.deadline = deadline(settings.until, wall()) if settings.until else None
        self._begun = 0
        self._latest_s: deque[float] = deque(maxlen=REMEMBERED)  # of whole runs, start-up and scoring included
        self._gpu_s, self._lock = 0.0, threading.Lock()
        self._since_best = 0

    def begin(self) -> None:
        """Count an experiment that is about to start."""
        self._begun += 1

    def ran(self, result: RunResult) -> None:
        """Count what a run has used, a re-run too. Several threads may call it at once."""
        with self._lock:
            self._gpu_s += seconds_of(result)
            if result.ending is Ending.FINISHED:
                self._latest_s.append(seconds_of(result))

    def settled(self, experiment: Experiment) -> None:
        """Take in what became of one."""
        self._since_best = 0 if experiment.status is Status.KEPT else self._since_best + 1

    def out_of_time(self, rounds: int = 1) -> str:
        """Why no further run should begin, be it an experiment's first or one of its re-runs: time alone counts here.

        `rounds` is how many runs, one after the other, are to end in time.
        """
        limits, needed_s = self.settings, rounds * max([self._experiment_s, *list(self._latest_s)])
        if limits.hours is not None and self._clock() - self._began_s + needed_s > 3600 * limits.hours:
            return f"no further run would end within {limits.hours:g} hours (stop.hours)"
        if self.deadline is not None and self._wall() + timedelta(seconds=needed_s) > self.deadline:
            return f"no further run would end before {self.deadline:%Y-%m-%d %H:%M} (stop.until)"
        return ""

    def reason(self) -> str:
        """Why no further experiment should begin, as words for a person; '' while one may."""
        limits = self.settings
        if limits.experiments is not None and self._begun >= limits.experiments:
            return f"{self._begun} experiments were begun (stop.experiments)"
        if over := self.out_of_time():
            return over
        if limits.gpu_hours is not None and self._gpu_s >= 3600 * limits.gpu_hours:
            return f"candidates have used {self._gpu_s / 3600:.2f} GPU hours (stop.gpu_hours)"
        if limits.plateau is not None and self._since_best >= limits.plateau:
            return f"no new best in {self._since_best} experiments (stop.plateau)"
        return ""


def deadline(until: str, now: datetime) -> datetime:
    """Return when `until` is: "07:00" is the next such time of day in local time, anything else an ISO 8601 date and time.

    ValueError for what is neither, or has passed.
    """
    try:
        moment = datetime.strptime(until, "%H:%M")
        # Local time without a zone, so that the night in which clocks change is as long as it is.
        at = now.astimezone().replace(hour=moment.hour, minute=moment.minute, second=0, microsecond=0, tzinfo=None)
        return at.astimezone() if at.astimezone() > now else (at + timedelta(days=1)).astimezone()
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(until)
    except ValueError:
        raise ValueError(f"stop.until takes a time such as 07:00 or 2026-12-24T07:00, got {until!r}") from None
    at = at.astimezone()  # without a zone it is local time
    if at <= now:
        raise ValueError(f"stop.until has passed: {until!r}, it is {now:%Y-%m-%d %H:%M %Z}")
    return at
