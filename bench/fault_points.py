"""Where a campaign can be made to die: before and after every task, and inside the two writes that must be atomic.

Nothing of this is in the campaign's own code: the functions are wrapped, in the process that is to be killed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from arl_core.memory import Memory
from arl_core.policy import checkpoint as policy_files
from flows import confirm, iteration, slots

TASKS = ("make_prompt", "propose", "patch", "make_reward", "update", "checkpoint", "commit", "track")
INNER = ("while a checkpoint is written", "before rename", "after rename", "in transaction", "before commit ends")

RE_RUNS_FROM = 4  # three are the noise floor's; then a second look's first run, then its first re-run

POINTS = [
    *(f"{when} {task}" for task in (*TASKS, "train", "commit_repeat") for when in ("before", "after")),
    *(f"{inner}" for inner in INNER),
]


def arm(point: str, occurrence: int) -> None:
    """Have this process kill itself with SIGKILL when it comes to `point` for the nth time."""
    if point not in POINTS:
        raise ValueError(f"unknown fault point {point!r}; there are: {', '.join(POINTS)}")
    passed: Counter[str] = Counter()

    def reach(here: str) -> None:
        passed[here] += 1
        if (here, passed[here]) == (point, occurrence):
            os.kill(os.getpid(), signal.SIGKILL)

    for name in TASKS:
        _wrap(iteration, name, reach)
    _wrap(slots, "train", reach)
    _wrap(confirm, "commit_repeat", reach)
    _wrap_renames(reach)
    _wrap_transaction(reach)


def _wrap(module: Any, name: str, reach: Callable[[str], None]) -> None:
    original = getattr(module, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        reach(f"before {name}")
        found = original(*arguments, **named)
        reach(f"after {name}")
        return found

    setattr(module, name, wrapped)


def _wrap_renames(reach: Callable[[str], None]) -> None:
    """A checkpoint is written aside, fsynced, and renamed into its place."""
    put, fsync = policy_files._put, policy_files.fsync

    def wrapped_put(*arguments: Any) -> None:
        reach("before rename")
        put(*arguments)
        reach("after rename")

    def wrapped_fsync(path: Any) -> None:
        reach("while a checkpoint is written")
        fsync(path)

    policy_files._put, policy_files.fsync = wrapped_put, wrapped_fsync  # type: ignore[assignment]


def _wrap_transaction(reach: Callable[[str], None]) -> None:
    write_state = Memory._write_state

    def wrapped(self: Memory, *arguments: Any) -> None:
        reach("in transaction")
        write_state(self, *arguments)
        reach("before commit ends")

    Memory._write_state = wrapped  # type: ignore[method-assign, assignment]


def plan(kills: int, seed: int, server: bool) -> list[tuple[str, str, int]]:
    """Return (target, point, occurrence) for every kill: each point of the flow once, then every target at random moments.

    The point is '' for a random moment. With fewer kills than points the points are spread over what there is.
    """
    luck = random.Random(seed)
    boundary = [("flow", point, (RE_RUNS_FROM if "repeat" in point else 1) + n % 2) for n, point in enumerate(POINTS)]
    luck.shuffle(boundary)
    targets = ("host", "candidate", "flow", "worker", "server") if server else ("host", "candidate", "flow")
    random_ones = [(target, "", 0) for target in targets]
    share = min(len(boundary), (kills + 1) // 2)
    chosen = boundary[:share] + list(itertools.islice(itertools.cycle(random_ones), kills - share))
    luck.shuffle(chosen)
    return chosen
