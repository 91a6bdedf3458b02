"""Where the time of an iteration goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Costs:
    """Seconds by part of one iteration.

    What comes after the commit cannot be in the record that is committed: it is told in the next experiment's, as
    `before/commit`, `before/track` and `before/between`, the time from the record's making to this iteration's start.
    """

    def __init__(self, previous: Costs | None) -> None:
        self.parts: dict[str, float] = {}
        self._began_s = self._finished_s = time.monotonic()
        if previous is not None:
            self.parts |= {
                f"before/{part}": previous.parts[part] for part in ("commit", "track") if part in previous.parts
            }
            self.parts["before/between"] = self._began_s - previous._finished_s

    @classmethod
    def resumed(cls, told: Mapping[str, float]) -> Costs:
        """Go on with what finished() told before a campaign was interrupted; the time in between is nobody's."""
        costs = cls(None)
        costs.parts = {part: seconds for part, seconds in told.items() if part != "iteration"}
        costs._began_s -= told["iteration"]
        return costs

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + time.monotonic() - began_s

    def since_began(self) -> float:
        return time.monotonic() - self._began_s

    def finished(self) -> dict[str, float]:
        """All parts so far and `iteration`, their wall-clock total up to here."""
        self._finished_s = time.monotonic()
        return self.parts | {"iteration": self._finished_s - self._began_s}

    def shared(self, n: int) -> list[Costs]:
        """Return the costs of n experiments that began together: itself for one, else what was spent so far, split."""
        if n == 1:
            return [self]
        shares = [Costs(None) for _ in range(n)]
        for share in shares:
            share.parts = {part: seconds / n for part, seconds in self.parts.items()}
        return shares
