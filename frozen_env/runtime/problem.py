"""What the runtime asks of a problem. The runtime knows nothing else of what is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from frozen_env.contract import Cause, Direction
from frozen_env.runtime.launch import Commands


class TrainingRows(Protocol):
    """A stream of training rows in an order that one seed fixes."""

    def take(self, rows: int) -> np.ndarray:
        """Return the next rows, uint16 [rows, T + 1]."""


class ScoringPlan(Protocol):
    """Held-out inputs in the order in which workers see them, and the measurement of what they answer.

    `passes` lists the inputs of one fresh worker process each; every array is int64 [B, T]. `repeated` are inputs that are
    asked of two more workers, to find out why answers differ. The array that take() gets may change while it is read.
    """

    passes: list[list[np.ndarray]]
    repeated: list[np.ndarray]
    output_dim: int

    def take(self, pass_index: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        """Measure one answer. Return what is wrong with it as a sentence, or ''."""

    def differs(self) -> bool:
        """Say whether answers that had to agree do not. Called after the last pass."""

    def take_repeated(self, attempt: int, batch_index: int, logits_BTV: np.ndarray) -> str:
        """As take(), for `repeated`, attempts 0 and 1."""

    def explain(self) -> tuple[Cause, str]:
        """Say why answers differ: they look ahead, keep state, or are not deterministic. Called after both attempts."""

    def result(self) -> dict[str, float]:
        """Return value, held_out_tokens, held_out_bytes, probe_max_diff. Called when nothing differs."""


class Problem(Protocol):
    """Metric of one frozen environment; `digest` names its data. It is a Served or a Commanded problem."""

    metric: str
    direction: Direction
    digest: str


@runtime_checkable
class Commanded(Problem, Protocol):
    """Its commands are run: one trains, one predicts; the file of predictions is measured."""

    commands: Commands

    def measure(self, predictions: Path) -> float:
        """Return the metric. Raises FrozenEnvError, whose message says what is wrong with the predictions."""


@runtime_checkable
class Served(Problem, Protocol):
    """Its training rows are served to a torch script, whose model answers held-out inputs."""

    def training_rows(self, seed: int) -> TrainingRows: ...

    def scoring_plan(self, seed: int, device: str, secret: int) -> ScoringPlan:
        """`device` is 'cpu' or 'cuda': the precision that answers come with follows from it.

        The value may depend on `seed`, the run's, and no other chance. What checks the model (which inputs are probed, and
        how) must depend on `secret` alone, which no candidate knows; a candidate knows the seed.
        """
