"""The constants of one frozen environment, as data: what a preset's [environment] table may say.

A run's result is comparable with another's only when both specs are equal, so `digest()` goes into every result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from frozen_env.contract import FrozenEnvError

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """One frozen environment. Seconds are wall-clock seconds; limits are per candidate, its whole process tree."""

    name: str
    problem: str = "target"  # the problem's folder, relative to the project's root or absolute; its own digest counts
    corpus: Literal["kjv", "parquet"] = "kjv"
    corpus_path: str = ""  # for corpus = "parquet": a folder of shards, or hf://datasets/OWNER/NAME/PATTERN.parquet
    validation_shard: str = ""  # name of the shard that is held out whole; empty: documents are, by their sha256
    vocab_size: int = 1024
    seq_len: int = 256  # tokens
    held_out_rows: int = 128  # rows of seq_len + 1 tokens that are scored
    probe_rows: int = 16  # rows scored twice, the second time with another future

    budget_s: float = 20.0  # training time from the candidate's start()
    check_every_s: float = 2.0  # between two stopping verdicts
    startup_allowance_s: float = 60.0  # imports and compilation; what exceeds it is taken from the budget
    grace_s: float = 2.0  # between SIGTERM at the end of the budget and SIGKILL
    overrun_s: float = 1.0  # of the grace, to settle in besides a last step and saving; more than these is training on
    silence_s: float = 15.0  # longest time between reports once training has started
    score_limit_s: float = 60.0  # longest time for held-out inputs to be answered
    settling_s: float = 2.0  # of a processor, for a scoring worker to load the model, and again to begin to answer

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 2  # CPU threads of the candidate
    memory_limit_mb: int = 6144  # of all its processes together
    process_limit: int = 16  # processes at a time, the candidate's first included
    scratch_limit_mb: int = 4096  # all that it may write; the submission passes through it
    submission_limit_mb: int = 2048
    log_limit_kb: int = 256  # of its log that is kept; printing 64 times as much ends the run
    sandbox: Literal["on", "off"] = "on"  # off: candidates can do all that you can (docs/security.md)

    def __post_init__(self) -> None:
        for key in (
            "vocab_size",
            "seq_len",
            "held_out_rows",
            "threads",
            "memory_limit_mb",
            "process_limit",
            "scratch_limit_mb",
            "submission_limit_mb",
            "log_limit_kb",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"environment.{key} must be at least 1, got {getattr(self, key)!r}")
        for key in ("budget_s", "check_every_s", "grace_s", "overrun_s", "silence_s", "score_limit_s", "settling_s"):
            if not 0 < getattr(self, key) < 1e7:
                raise ValueError(f"environment.{key} must be positive seconds, got {getattr(self, key)!r}")
        if self.sandbox not in ("on", "off"):
            raise ValueError(f"environment.sandbox must be 'on' or 'off', got {self.sandbox!r}")
        if not 0 <= self.probe_rows <= self.held_out_rows:
            raise ValueError(f"environment.probe_rows must lie in 0..held_out_rows, got {self.probe_rows!r}")

    @property
    def scoring_limit_s(self) -> float:
        """Longest time for a whole scoring: the start-up of its workers (two, when all is well) and their answers."""
        return 2 * self.startup_allowance_s + self.score_limit_s

    @property
    def run_limit_s(self) -> float:
        """Longest time that a candidate can take from its start to the end of its scoring."""
        return self.startup_allowance_s + self.budget_s + self.grace_s + self.scoring_limit_s

    def digest(self) -> str:
        """Return 16 hex digits that change with every constant; where the problem's folder lies is none."""
        constants = {key: value for key, value in dataclasses.asdict(self).items() if key != "problem"}
        text = json.dumps(constants, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EnvironmentSpec:
        """Build a spec from plain data. Raises FrozenEnvError on an unknown or missing key."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise FrozenEnvError(
                f"unknown environment setting {unknown[0]!r}; known settings: {', '.join(sorted(known))}"
            )
        return cls(**data)


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's tables: `environment` (for EnvironmentSpec) and `target` (constants written into train.py).

    Raises FrozenEnvError when there is no such preset.
    """
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        raise FrozenEnvError(f"unknown environment preset {name!r}; there are: {', '.join(preset_names())}")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    tables.setdefault("environment", {})["name"] = name
    tables.setdefault("target", {})
    return tables
