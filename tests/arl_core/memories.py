"""Campaigns and experiments for tests of the memory, with no more in them than a test asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from arl_core.records import Campaign, Experiment
from frozen_env.contract import Status

ROOT = Path(__file__).resolve().parents[2]
SEED = Path(__file__).with_name("test_memory.py").read_text(encoding="utf-8")  # any Python of a few hundred lines


def campaign(name: str = "c", **changes: object) -> Campaign:
    return dataclasses.replace(
        Campaign(name, "embedded", {"seed": 1}, "digest", 1, "2026-11-23T00:00:00+00:00", "text"), **changes
    )


def experiment(index: int, value: float | None = None, name: str = "c", **fields: object) -> Experiment:
    status = Status.DISCARDED if value is not None else Status.CRASHED
    known: dict[str, object] = {"status": status, "value": value, "metric": "val_bpb", **fields}
    return Experiment(name, index, **known)  # type: ignore[arg-type]
