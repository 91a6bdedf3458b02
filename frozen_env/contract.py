"""The public contract: what frozen_env promises to the rest of the house.

Statuses, the records that cross between processes, and the one error tree. Everything here is plain data that survives a
round trip through JSON, so that an experiment may run on another node. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Direction = Literal["lower", "higher"]


class Status(StrEnum):
    """How an experiment ended, as the memory tells it."""

    KEPT = "kept"  # beat the incumbent and became it
    DISCARDED = "discarded"  # scored, did not beat the incumbent
    STOPPED_EARLY = "stopped_early"  # ended by the stopping verdict; its value is a forecast
    CRASHED = "crashed"  # the candidate failed: exception, NaN, memory, silence, bad submission
    TIMED_OUT = "timed_out"  # did not start or did not submit in its time
    REJECTED = "rejected"  # the edit was invalid, or a rule of the frozen environment was broken
    DUPLICATE = "duplicate"  # the same source was tried before; nothing was run


class Ending(StrEnum):
    """How one run of a candidate ended, as the supervisor saw it. `Cause` says why when it is not FINISHED."""

    FINISHED = "finished"
    STOPPED = "stopped"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"


class Cause(StrEnum):
    """Why a run did not finish; told apart because a remedy differs for each."""

    NONE = ""
    VERDICT = "verdict"  # the stopping verdict said so
    EXCEPTION = "exception"  # the candidate raised or exited non-zero
    SIGNAL = "signal"  # the candidate was killed by a signal that we did not send
    NAN = "nan"  # a reported loss was not finite
    OUT_OF_MEMORY = "out_of_memory"
    PROCESSES = "processes"  # more processes, threads or cores than allowed
    DISK = "disk"  # its scratch folder grew beyond its limit
    OUTPUT = "output"  # printed without end
    SILENCE = "silence"  # no report for longer than silence_s
    NO_START = "no_start"  # start() was not called in time
    NO_SUBMISSION = "no_submission"  # ended without submit(model)
    BAD_SUBMISSION = "bad_submission"  # not a regular safetensors file, or too large
    OVERRUN = "overrun"  # went on training after the end of the budget
    BAD_MODEL = "bad_model"  # build_model() or forward() failed, or the weights do not fit
    BAD_SHAPE = "bad_shape"  # answers are not logits [B, T, V]
    NOT_FINITE = "not_finite"  # logits are NaN or infinite
    LOOKAHEAD = "lookahead"  # logits of the past changed with the future
    NOT_DETERMINISTIC = "not_deterministic"  # the same question, asked of two fresh workers, got two answers
    STATEFUL = "stateful"  # the answer to a row depends on what was asked before it or beside it
    SLOW_MODEL = "slow_model"  # held-out inputs were not answered in time
    PROTOCOL = "protocol"  # broke the candidate protocol
    BAD_PREDICTIONS = "bad_predictions"  # the file of predictions is missing, or the frozen score does not take it
    ABORTED = "aborted"  # the campaign was interrupted


@dataclass(frozen=True)
class Report:
    """One `report(step, loss, lr)` of a candidate, stamped by the supervisor's clock.

    fraction is the share of the training budget used, in (0, 1]; loss is the training loss, as the candidate
    tells it (self-reported: it steers early stopping, never the score); lr is the learning rate in the candidate's own
    units (only its ratio to its peak means something), or None when not reported.
    """

    step: int
    elapsed_s: float
    fraction: float
    loss: float
    lr: float | None = None


@dataclass(frozen=True)
class Progress:
    """What a stopping verdict may look at: the run so far."""

    reports: tuple[Report, ...]
    elapsed_s: float
    budget_s: float

    @property
    def fraction(self) -> float:
        return min(1.0, self.elapsed_s / self.budget_s)


@dataclass(frozen=True)
class Verdict:
    """A stopping verdict with its evidence. `forecast`, `low`, `high` and `incumbent` are in the metric's units.

    p_improve is the probability that the finished run beats the incumbent, None when it could not be estimated.
    """

    stop: bool
    reason: str
    rule: str = ""
    fraction: float = 0.0
    forecast: float | None = None
    low: float | None = None
    high: float | None = None
    p_improve: float | None = None
    incumbent: float | None = None


Judge = Callable[[Progress], Verdict]


@dataclass(frozen=True)
class Score:
    """The trusted side's measurement of a submitted model."""

    metric: str
    value: float
    direction: Direction
    held_out_tokens: int = 0  # of a text; 0 where held-out inputs are none
    held_out_bytes: int = 0
    seconds: float = 0.0  # from worker ready to value
    startup_s: float = 0.0  # fork, build_model(), weights
    probe_max_diff: float = 0.0  # largest change of a past log-probability under a spliced future, nats


@dataclass(frozen=True)
class RunResult:
    """All that one run of a candidate left behind."""

    ending: Ending
    cause: Cause = Cause.NONE
    reason: str = ""
    score: Score | None = None
    reports: tuple[Report, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    startup_s: float = 0.0
    training_s: float = 0.0
    scoring_s: float = 0.0
    tokens_served: int = 0
    peak_memory_mb: float = 0.0
    log_tail: str = ""
    sandbox: str = ""
    environment_digest: str = ""
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunResult:
        fields = dict(data)
        fields["ending"] = Ending(fields["ending"])
        fields["cause"] = Cause(fields["cause"])
        fields["score"] = Score(**fields["score"]) if fields.get("score") else None
        fields["reports"] = tuple(Report(**r) for r in fields.get("reports", ()))
        fields["verdicts"] = tuple(Verdict(**v) for v in fields.get("verdicts", ()))
        return cls(**fields)


def is_better(value: float, than: float, direction: Direction) -> bool:
    """Say whether `value` beats `than`. A NaN never beats anything."""
    if math.isnan(value):
        return False
    return value < than if direction == "lower" else value > than


# --- errors -----------------------------------------------------------------------------------------------------------
# ResearchError
#  ├── FrozenEnvError
#  │    ├── ManifestError        a frozen file or a data file is not the one that was pinned
#  │    ├── DataMissing          the text, the tokenizer or the tokens are not prepared
#  │    ├── SandboxUnavailable   this kernel cannot confine a candidate
#  │    ├── ProblemError         a problem's folder does not keep the contract
#  │    ├── HostError            the process that runs candidates died or could not start
#  │    └── NotJoined            target/train.py was run by hand, without a supervisor
#  └── (arl_core/errors.py)      ConfigError, MemoryFileError, CampaignLocked, PolicyError, EditRejected


class ResearchError(Exception):
    """Root of every error that we raise on purpose. The message names the cause and the remedy."""


class FrozenEnvError(ResearchError):
    """Something in the frozen environment is not as it must be."""


class ManifestError(FrozenEnvError):
    """A pinned file is missing or changed."""


class DataMissing(FrozenEnvError):
    """Prepared data or weights are not in the data folder."""


class ProblemError(FrozenEnvError):
    """A problem's folder does not keep the contract; each line is a sentence that names the field and the remedy."""


class SandboxUnavailable(FrozenEnvError):
    """The kernel offers no confinement that keeps the promises of docs/security.md."""


class HostError(FrozenEnvError):
    """The host process died; the experiment in flight is lost, the campaign is not."""


class NotJoined(FrozenEnvError):
    """A candidate function was called outside a supervised run."""
