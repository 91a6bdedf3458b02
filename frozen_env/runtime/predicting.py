"""Score what a command left behind: held-out inputs, a confined predictor, its file of predictions, the frozen measurement.

The predictor is a fresh process in a fresh folder: the candidate's files, the model, the training data and the held-out
inputs, no answers. What it writes is read when all of its processes have ended, in a process that holds no candidate code.
What it prints is dropped: it may hold held-out inputs, and reasons and logs reach the policy.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frozen_env.contract import Cause, FrozenEnvError, Score
from frozen_env.runtime import disk, launch, processes
from frozen_env.runtime.limits import LimitBroken, Limits
from frozen_env.runtime.problem import Commanded
from frozen_env.runtime.scoring import WITHHELD, Refused, Scoring
from frozen_env.runtime.submission import take_file
from frozen_env.runtime.words import Output, known_error, signal_name
from frozen_env.runtime.zygote import Zygote
from frozen_env.spec import EnvironmentSpec


@dataclass
class _Predictor:
    """One run of the predicting command."""

    spec: EnvironmentSpec
    place: launch.Workplace
    commands: launch.Commands
    seed: int
    zygote: Zygote
    inbox_fd: int
    read_inbox: Callable[[], list[dict[str, Any]]]
    peak_memory_mb: float = 0.0

    @property
    def scratch(self) -> Path:
        return self.place.scoring_scratch

    def run(self) -> None:
        """Run the command to its end and leave no process behind. Raises Refused."""
        child = self._start()
        output = Output(child.output_fd)
        limits = Limits(self.spec, os.getpid(), self.zygote.pid, self.scratch)
        try:
            self._wait(child, output, limits)
        except LimitBroken as broken:
            raise Refused(broken.cause, str(broken)) from broken
        finally:
            processes.kill_all_descendants(spare=self.zygote.pid)
            output.drain()
            child.close()
            self.peak_memory_mb = limits.peak_memory_mb

    def _start(self) -> launch.Child:
        place, commands = self.place, self.commands
        disk.remove(self.scratch)
        self.scratch.mkdir()
        model = place.submission / Path(commands.model).name
        links = {
            commands.model: str(model),
            launch.DATA: commands.training_folder,
            launch.INPUTS: commands.held_out_folder,
        }
        place.furnish(self.scratch, links)
        order = launch.Order(
            "worker",
            str(place.source),
            str(self.scratch),
            [str(place.candidate), str(place.submission), *list(links.values())[1:], *commands.readable],
            self.seed,
            os.getpid(),
            command=list(commands.predict),
            hidden=list(commands.hidden),
        )
        return self.zygote.start(order)

    def _wait(self, child: launch.Child, output: Output, limits: Limits) -> None:
        deadline_s = time.monotonic() + self.spec.scoring_limit_s
        pid_fd = os.pidfd_open(child.pid)
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(os.close, pid_fd)
            listener_fd = child.listener.fd if child.listener is not None else -1
            for fd in (child.output_fd, pid_fd, self.inbox_fd, listener_fd):
                if fd >= 0:
                    selector.register(fd, selectors.EVENT_READ)
            while (left_s := deadline_s - time.monotonic()) > 0:
                limits.look(output)
                for key, _ in selector.select(max(0.0, min(left_s, limits.next_look_s - time.monotonic()))):
                    if key.fd == pid_fd:
                        self._check_exit(child, output)
                        return
                    if key.fd == self.inbox_fd:
                        if any("abort" in message for message in self.read_inbox()):
                            raise Refused(Cause.ABORTED, "the campaign was interrupted")
                    elif not (output.read() if key.fd == child.output_fd else limits.admit(child)):
                        selector.unregister(key.fd)
        raise Refused(
            Cause.SLOW_MODEL,
            f"run.predict took more than {self.spec.scoring_limit_s:g} s (environment.score_limit_s, startup_allowance_s)",
        )

    @staticmethod
    def _check_exit(child: launch.Child, output: Output) -> None:
        _, status, _ = os.wait4(child.pid, 0)
        output.drain()
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            how = signal_name(-code) if code < 0 else known_error(output.tail) or "an exit code that is not 0"
            raise Refused(
                Cause.BAD_MODEL,
                f"run.predict failed with {how}; it reads held-out inputs, and {WITHHELD}. Run by hand on other inputs it is seen",
            )


def score(
    spec: EnvironmentSpec,
    place: launch.Workplace,
    problem: Commanded,
    seed: int,
    zygote: Zygote,
    inbox_fd: int,
    read_inbox: Callable[[], list[dict[str, Any]]],
) -> Scoring:
    """Have the submitted model predict, then measure. Leaves no process behind. {"abort": true} of the caller ends it."""
    began_s = time.monotonic()
    predictor = _Predictor(spec, place, problem.commands, seed, zygote, inbox_fd, read_inbox)
    outcome = Scoring()
    try:
        predictor.run()
        value = _measure(spec, place, predictor.scratch, problem)
        seconds = time.monotonic() - began_s
        outcome.score = Score(problem.metric, value, problem.direction, seconds=seconds)
    except Refused as refused:
        outcome.cause, outcome.reason = refused.cause, str(refused)
    finally:
        disk.remove(predictor.scratch)
    outcome.log_tail, outcome.peak_memory_mb = f"(run.predict: {WITHHELD})\n", predictor.peak_memory_mb
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _measure(spec: EnvironmentSpec, place: launch.Workplace, scratch: Path, problem: Commanded) -> float:
    name = problem.commands.predictions
    into = place.root / "predictions"
    disk.remove(into)
    into.mkdir()
    try:
        wrong, _ = take_file(
            scratch, name, into, spec.submission_limit_mb, "the file of predictions", f"run.predict wrote no {name}"
        )
        if wrong:
            raise Refused(Cause.BAD_PREDICTIONS, wrong)
        return problem.measure(into / Path(name).name)
    except FrozenEnvError as error:
        raise Refused(Cause.BAD_PREDICTIONS, str(error)) from error
    finally:
        disk.remove(into)
