"""How much a scoring worker may work: to load and to answer, and no more, or a model would go on learning while it is scored.

A model can bring rows of training text along in a buffer, and an optimiser in its eval() or its first forward(). Switching
gradients off holds nobody who can switch them on again, but learning takes time. On a CPU that is the processor time of the
worker's whole tree, which a busy machine does not lengthen; on a GPU, which computes while processors wait, it is the time
that goes by.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from frozen_env.runtime.limits import LOOK_EVERY_S
from frozen_env.runtime.processes import ProcessorTime
from frozen_env.spec import EnvironmentSpec

GPU_SETTLING_S = 10.0  # besides spec.settling_s: CUDA starts, kernels are loaded. A guess: no GPU was at hand
LOADING_BYTES_PER_S = 200e6  # of the submission: parameters are drawn at random, read and copied
ANSWERING_BYTES_PER_S = 1e9  # of logits, into shared memory
PACE = 3.0  # for each token an answer may take so many times what training took; a forward pass is a third of a step
# …but for one batch no more than this share of the training time, or who asks for little text would have time to learn.
MOST_OF_BUDGET = 0.05


@dataclass(frozen=True)
class Allowance:
    """What the workers of one submission may take, in seconds of processor time, on a GPU of time that goes by."""

    spec: EnvironmentSpec
    submission_bytes: int
    training_s: float
    training_tokens: int

    @property
    def settling_s(self) -> float:
        return self.spec.settling_s + (GPU_SETTLING_S if self.spec.device == "cuda" else 0.0)

    @property
    def loading_s(self) -> float:
        """For build_model(), the weights, eval(), and the pass in which its operations are counted."""
        return self.settling_s + self.submission_bytes / LOADING_BYTES_PER_S

    def answering_s(self, tokens: int, logits_bytes: int) -> float:
        """For one batch of held-out inputs; its first answer may take settling_s more."""
        cores = self.spec.threads if self.spec.device == "cpu" else 1
        most_s = MOST_OF_BUDGET * self.spec.budget_s * cores
        pace_s = tokens * PACE * self.training_s * cores / self.training_tokens if self.training_tokens else most_s
        return min(pace_s, most_s) + logits_bytes / ANSWERING_BYTES_PER_S


@dataclass
class Effort:
    """What one worker has taken since begin(): of processor time whatever its tree used, also while it waits for us; of time
    that goes by what lies between resume() and pause()."""

    spec: EnvironmentSpec
    allowed_s: float = math.inf
    spent_s: float = 0.0
    _processor: ProcessorTime = field(default_factory=lambda: ProcessorTime(LOOK_EVERY_S * (os.cpu_count() or 1)))
    _before_s: float = 0.0
    _resumed_s: float | None = None

    def begin(self, pids: Iterable[int], allowed_s: float, admitted: int = 0) -> None:
        """Count from now on."""
        self.allowed_s = allowed_s
        self._before_s = self._processor.look(pids, admitted)
        self.spent_s, self._resumed_s = 0.0, time.monotonic()

    def resume(self, more_s: float) -> None:
        """The worker has been asked; it may take so much more."""
        self.allowed_s += more_s
        self._resumed_s = time.monotonic()

    def pause(self) -> None:
        """The worker has answered; measuring its answer is ours."""
        if self.spec.device == "cuda" and self._resumed_s is not None:
            self.spent_s += time.monotonic() - self._resumed_s
        self._resumed_s = None

    def is_too_much(self, pids: Iterable[int], admitted: int) -> bool:
        """Look. `admitted`: processes that were let start, ever."""
        if self.spec.device == "cuda":
            running_s = 0.0 if self._resumed_s is None else time.monotonic() - self._resumed_s
            return self.spent_s + running_s > self.allowed_s
        self.spent_s = self._processor.look(pids, admitted) - self._before_s
        return self.spent_s > self.allowed_s
