"""The records that a campaign leaves behind: one Campaign, one Experiment per edit, and the State to resume from.

Plain frozen data that survives a round trip through strict JSON (no NaN token), so that the memory, MLflow, a report
and another node all read the same thing. Times are UTC in ISO 8601; costs are in seconds; losses as candidates report them;
values in the metric's own units.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from frozen_env.constants import parse_quietly
from frozen_env.contract import Cause, Direction, Report, Status, Verdict
from frozen_env.description import built_in
from frozen_env.files import split_marked

BEST_AFTER = "best_after"  # in an experiment's extra: the incumbent's value after its commit


@dataclass(frozen=True)
class Experiment:
    """One edit and what came of it. Index 0 is the seed: no parent, no diff.

    value is measured by the trusted side, None when there is none; estimate is the calibrated forecast that stands in
    for it when a run was stopped early. incumbent_value is the incumbent at the time of the proposal, the one that the
    reward was computed against. confirmed_value is the mean over `confirmations` fresh seeds, the selecting run not among
    them, and is kept apart from value; a discarded experiment has one too if it was re-run. Text that a candidate or a
    policy wrote (reason, summary, diff, completion, log) is untrusted: escape it where it is shown.
    """

    campaign_id: str
    index: int
    status: Status
    parent_index: int | None = None  # the experiment whose source was edited
    cause: Cause = Cause.NONE
    reason: str = ""
    summary: str = ""  # one line: what the edit changed
    diff: str = ""
    source_hash: str = ""  # of the normalised source: see source_hash()
    source: str = ""
    metric: str = ""
    value: float | None = None
    direction: Direction = "lower"
    estimate: float | None = None
    incumbent_value: float | None = None
    reward: float | None = None
    reward_terms: dict[str, float] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()  # the curve
    verdicts: tuple[Verdict, ...] = ()
    prompt: str = ""
    completion: str = ""
    log: str = ""  # the tail of what the candidate printed
    repairs: tuple[str, ...] = ()  # what the tolerant parser had to mend
    costs: dict[str, float] = field(default_factory=dict)  # seconds by part: prompt, propose, patch, startup, training…
    peak_memory_mb: float = 0.0
    tokens: int = 0
    seed: int = 0
    environment_digest: str = ""
    sandbox: str = ""
    created_at: str = ""
    policy_step: int = 0
    confirmed_value: float | None = None
    confirmations: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.index < 0:
            raise ValueError(f"an experiment's index starts at 0, got {self.index}")
        if self.direction not in ("lower", "higher"):
            raise ValueError(f"direction must be 'lower' or 'higher', got {self.direction!r}")
        object.__setattr__(self, "status", Status(self.status))
        object.__setattr__(self, "cause", Cause(self.cause))

    @property
    def repeated(self) -> bool:
        """Whether it ran on fresh seeds too: it has a mean over them, which counts before the selecting run's value."""
        return self.confirmations > 0 and self.confirmed_value is not None

    @property
    def figure(self) -> float | None:
        """The value that it stands for: the mean over fresh seeds where there is one, else the single run; None: none."""
        value = self.confirmed_value if self.repeated else self.value
        return value if value is not None and math.isfinite(value) else None

    @property
    def promotion(self) -> int:
        """1 for the baseline whose noise was measured, 2 for the first candidate confirmed against it…; 0 for the others."""
        return int(self.extra.get("confirmation", {}).get("promotion", 0)) if self.confirmations else 0

    @property
    def confirmed_error(self) -> float | None:
        """One standard error of confirmed_value, from its own runs' spread as the test judged it; None when nothing was known.

        Records of earlier versions have the noise of other files alone.
        """
        told = self.extra.get("confirmation", {})
        sd = told.get("sd", told.get("noise_sd"))
        if sd is None or not self.confirmations or not math.isfinite(float(sd)):
            return None
        return float(sd) / math.sqrt(self.confirmations)

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps(..., allow_nan=False)` accepts; non-finite numbers become strings."""
        data: dict[str, Any] = finite_json(dataclasses.asdict(self))
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Experiment:
        """Read what to_json() wrote. ValueError for an unknown status, TypeError for an unknown field."""
        fields = dict(data)
        for name in ("value", "estimate", "incumbent_value", "reward", "confirmed_value"):
            fields[name] = _number(fields.get(name))
        for name in ("reward_terms", "costs"):
            fields[name] = {key: _number(value) for key, value in fields.get(name, {}).items()}
        fields["reports"] = tuple(report_from_json(r) for r in fields.get("reports", ()))
        fields["verdicts"] = tuple(verdict_from_json(v) for v in fields.get("verdicts", ()))
        fields["repairs"] = tuple(fields.get("repairs", ()))
        return cls(**fields)


@dataclass(frozen=True)
class Campaign:
    """A line of research: one preset, one frozen environment, one seed. config holds every setting, as plain JSON."""

    id: str
    preset: str
    config: dict[str, Any]
    environment_digest: str
    seed: int
    started_at: str
    problem: str
    metric: str = built_in().metric
    direction: Direction = built_in().direction
    status: str = "running"  # running, finished, interrupted, failed

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = finite_json(dataclasses.asdict(self))
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Campaign:
        return cls(**data)


@dataclass(frozen=True)
class State:
    """All that a campaign needs to go on after `index`, the last experiment committed (-1: none yet).

    values is plain JSON (policy checkpoints' names and digests, learning steps…); blob is opaque bytes (rollouts
    that wait for an update). What they mean is the campaign's business.
    """

    values: dict[str, Any] = field(default_factory=dict)
    blob: bytes = b""
    index: int = -1


def device_of(extra: Mapping[str, Any]) -> str:
    """The device that a run's scoring worker told of; "" when none did, as after a crash."""
    return str((extra.get("performance") or {}).get("device") or "")


def utc_now() -> str:
    """Return the present in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def confirmed_words(experiment: Experiment) -> str:
    """Return the mean over fresh seeds, its standard error and the number of runs: `1.5990 ± 0.0020 ×4`; "" if not re-run."""
    if not experiment.repeated:
        return ""
    error = experiment.confirmed_error
    plus_minus = f" ± {error:.4f}" if error is not None else ""
    return f"{experiment.confirmed_value:.4f}{plus_minus} ×{experiment.confirmations}"


# --- JSON -------------------------------------------------------------------------------------------------------------


def finite_json(value: Any) -> Any:
    """Copy plain data, turning NaN and infinities into the strings "nan", "inf", "-inf" that strict JSON can carry."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return value


def report_from_json(data: dict[str, Any]) -> Report:
    return Report(**{**data, **{k: _number(data.get(k)) for k in ("elapsed_s", "fraction", "loss", "lr")}})


def verdict_from_json(data: dict[str, Any]) -> Verdict:
    numbers = ("fraction", "forecast", "low", "high", "p_improve", "incumbent")
    return Verdict(**{**data, **{k: _number(data[k]) for k in numbers if k in data}})


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


# --- text -------------------------------------------------------------------------------------------------------------


def one_line(text: str, limit: int = 120) -> str:
    """Flatten untrusted text to one printable line of at most `limit` characters, for prompts, tables and tags.

    Terminal escapes and other control, format and unassigned characters become visible; chat markers such as
    `<|im_end|>` and edit markers such as `<<<<<<< SEARCH` are broken, so that a candidate's words cannot end a turn or
    open an edit. A page that shows the line must still escape its own markup.
    """
    text = text[: 20 * limit]  # bounds the work on a hostile megabyte
    text = "".join(_visible(char) for char in " ".join(text.split()))
    text = text.replace("<|", "< |").replace("|>", "| >")
    text = re.sub(r"<{4,}|={4,}|>{4,}", lambda run: run.group()[:3], text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def visible(text: str) -> str:
    """Make terminal escapes and other control, format and unassigned characters visible; lines and tabs stay."""
    return "".join(char if char in "\n\t" else _visible(char) for char in text)


def _visible(char: str) -> str:
    if not unicodedata.category(char).startswith("C"):
        return char
    return ascii(char)[1:-1]


# --- identity of a source ---------------------------------------------------------------------------------------------


def source_hash(text: str) -> str:
    """Return the sha256 of the normalised source: comments, docstrings, whitespace and number spelling do not count.

    Two sources with the same hash train the same model, so that novelty is judged before money is spent. Text that does
    not parse is hashed as it stands.
    """
    files = split_marked(text)
    if files is not None:  # code that moves from one file to another makes another program
        text = "".join(f"{name} {source_hash(one)}\n" for name, one in files.items())
        return hashlib.sha256(text.encode()).hexdigest()
    try:
        tree = parse_quietly(text)
        tree = ast.fix_missing_locations(_DropBareStrings().visit(tree))
        normal = ast.unparse(tree)
    except (SyntaxError, RecursionError, ValueError):
        normal = text
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()


class _DropBareStrings(ast.NodeTransformer):
    """Remove docstrings and other strings that stand alone: they do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return node
