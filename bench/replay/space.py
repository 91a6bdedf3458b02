"""The 14 constants that the recorded trials varied: their ranges, and how a search may move them.

Ranges are the smallest and largest recorded values; a setting outside is refused for every arm alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Setting = dict[str, Any]  # {constant: value}

# Karpathy's untouched script, where every arm but `random` starts.
BASELINE: Setting = {
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "HEAD_DIM": 128,
    "DEVICE_BATCH_SIZE": 128,
    "TOTAL_BATCH_SIZE": 524288,
    "EMBEDDING_LR": 0.6,
    "UNEMBEDDING_LR": 0.004,
    "MATRIX_LR": 0.04,
    "SCALAR_LR": 0.5,
    "WEIGHT_DECAY": 0.2,
    "WARMUP_RATIO": 0.0,
    "WARMDOWN_RATIO": 0.5,
    "FINAL_LR_FRAC": 0.0,
    "WINDOW_PATTERN": "SSSL",
}
LOG_STEP = 0.3  # standard deviation of a local move, in log units
SHARE_STEP = 0.1  # the same for linear constants, as a share of their range


@dataclass(frozen=True)
class Constant:
    """One constant: `choices` in order for choice constants, else the range `low` to `high`."""

    name: str
    kind: Literal["log", "linear", "integer", "choice"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value over the whole range, evenly on its natural scale."""
        if self.kind == "choice":
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.kind == "log":
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        value = rng.uniform(self.low, self.high)
        return round(value) if self.kind == "integer" else value

    def move(self, value: Any, rng: np.random.Generator) -> Any:
        """Draw a value near the present one, inside the range, and different."""
        while True:
            moved = self._move(value, rng)
            if moved != value:
                return moved

    def _move(self, value: Any, rng: np.random.Generator) -> Any:
        if self.kind == "choice":
            here = self.choices.index(value)
            step = int(rng.choice((-1, 1))) if not isinstance(value, str) else int(rng.integers(len(self.choices)))
            place = here + step if not isinstance(value, str) else step
            return self.choices[min(max(place, 0), len(self.choices) - 1)]
        if self.kind == "log":
            return self.clip(value * math.exp(LOG_STEP * rng.normal()))
        moved = self.clip(value + SHARE_STEP * (self.high - self.low) * rng.normal())
        return round(moved) if self.kind == "integer" else moved

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def refuses(self, value: Any) -> str:
        """Say why a value is outside the recorded ranges; "" when it is inside."""
        if self.kind == "choice":
            if any(value == choice and isinstance(value, str) == isinstance(choice, str) for choice in self.choices):
                return ""
            return f"{self.name} = {value!r} was never recorded; choices: {', '.join(map(str, self.choices))}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return f"{self.name} = {value!r} is outside the recorded range {self.low:g} to {self.high:g}"
        if self.kind == "integer" and value != int(value):
            return f"{self.name} = {value!r} is not a whole number"
        return ""


@dataclass(frozen=True)
class Space:
    """All constants, in the order of the recorded table."""

    constants: tuple[Constant, ...]

    def draw(self, rng: np.random.Generator) -> Setting:
        return {one.name: one.draw(rng) for one in self.constants}

    def neighbour(self, setting: Mapping[str, Any], rng: np.random.Generator) -> Setting:
        """Move one to three constants of a setting at random."""
        chosen = rng.choice(len(self.constants), size=int(rng.integers(1, 4)), replace=False)
        moves = {self.constants[i].name: self.constants[i].move(setting[self.constants[i].name], rng) for i in chosen}
        return {**setting, **moves}

    def refuses(self, setting: Mapping[str, Any]) -> str:
        """Say why a setting cannot be answered; "" when it can."""
        for one in self.constants:
            if one.name not in setting:
                return f"{one.name} is no longer a constant with a plain value"
            if reason := one.refuses(setting[one.name]):
                return reason
        return ""
