"""What the runtime asks of a problem. The runtime knows nothing else of what is being trained."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from frozen_env.contract import Direction


class TrainingRows(Protocol):
    """A stream of training rows in an order that one seed fixes."""

    def take(self, rows: int) -> np.ndarray:
        """Return the next rows, uint16 [rows, T + 1]."""


class ScoringPlan(Protocol):
    """Held-out inputs in the order in which workers see them, and the measurement of what they answer.

    `passes` lists the inputs of one fresh worker process each; every array is int64 [B, T].
    """

    passes: list[list[np.ndarray]]
    output_dim: int

    def take(self, pass_index: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        """Measure one answer. Return what is wrong with it as a sentence, or ''."""

    def result(self) -> dict[str, float]:
        """Return value, held_out_tokens, held_out_bytes, probe_max_diff. Called after the last answer."""

    def lookahead(self) -> str:
        """Say how the answers depended on the future, or ''."""


class Problem(Protocol):
    """Data and metric of one frozen environment."""

    metric: str
    direction: Direction

    def training_rows(self, seed: int) -> TrainingRows: ...

    def scoring_plan(self, seed: int) -> ScoringPlan: ...
