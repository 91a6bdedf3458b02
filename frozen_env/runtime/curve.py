"""Follow a script's losses on its standard output, by a regular expression of the user's on text of a candidate's.

What is found steers early stopping and the display, never the score.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

from frozen_env.runtime.channel import ProtocolError

LINE_CHARS = 1000  # a longer line is looked at up to here
LOOK_LIMIT_S = (
    0.5  # for one piece of output: some expressions take for ever on some lines, and a candidate picks the lines
)

Take = Callable[[int, float, float | None], None]


class Follower:
    """Finds losses in output that comes in pieces. Groups: `loss` (or the first), and if there are any, `step` and `lr`.

    Raises ProtocolError when the expression takes too long on what was printed.
    """

    def __init__(self, expression: str, take: Take) -> None:
        self._expression = re.compile(expression) if expression else None
        self._take = take
        self._rest = ""
        self._count = 0

    def __call__(self, text: str) -> None:
        if self._expression is None:
            return
        *lines, self._rest = (self._rest + text).split("\n")
        self._rest = self._rest[:LINE_CHARS]
        for found in _in_time(lambda: [self._find(line[:LINE_CHARS]) for line in lines]):
            if found is not None:
                self._take(*found)

    def _find(self, line: str) -> tuple[int, float, float | None] | None:
        assert self._expression is not None
        match = self._expression.search(line)
        if match is None:
            return None
        named = match.groupdict()
        loss = _number(named.get("loss") if "loss" in named else match.group(1))
        if loss is None:
            return None
        step = _number(named.get("step"))
        self._count = int(step) if step is not None and abs(step) < 2**53 else self._count + 1
        return self._count, loss, _number(named.get("lr"))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.replace(",", ""))
    except ValueError:
        return None


def _in_time(find: Callable[[], list[Any]]) -> list[Any]:
    """Call find(), within LOOK_LIMIT_S. The matcher looks for signals as it goes; hosts have one thread, the main one."""

    def too_long(_signal: int, _frame: Any) -> None:
        raise ProtocolError(f"run.curve took more than {LOOK_LIMIT_S:g} s on what the script printed")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, LOOK_LIMIT_S)
    try:
        return find()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
