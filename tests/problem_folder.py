"""A problem small enough for tests: guess a number, in plain Python. Its parts can be changed one at a time."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from frozen_env import manifest
from frozen_env.description import look

TOML: dict[str, Any] = {
    "name": "guess",
    "about": "it guesses a number, and the distance scores it",
    "metric": "distance",
    "direction": "lower",
    "gain": 0.1,
    "edit": {"files": ["train.py"]},
    "run": {
        "train": "python train.py",
        "model": "model.txt",
        "predict": "python predict.py",
        "predictions": "predictions.json",
        "given": ["predict.py"],
        "curve": r"step (?P<step>\d+) loss (?P<loss>\S+)",
    },
    "environment": {
        "budget_s": 20.0,
        "check_every_s": 0.5,
        "silence_s": 15.0,
        "grace_s": 1.0,
        "startup_allowance_s": 60.0,
        "score_limit_s": 60.0,
        "device": "cpu",
        "threads": 1,
        "memory_limit_mb": 256,
        "process_limit": 4,
        "scratch_limit_mb": 16,
        "submission_limit_mb": 4,
    },
}
TRAIN = """GUESS = 3.0  # the number

for step in range(3):
    print(f"step {step} loss {abs(GUESS - 5.0) / (step + 1)}")
with open("model.txt", "w") as file:
    file.write(str(GUESS + float(open("data/offset.txt").read())))
"""
PREDICT = """import json

count = len(open("inputs/questions.txt").read().split())
with open("predictions.json", "w") as file:
    json.dump([float(open("model.txt").read())] * count, file)
"""
FROZEN = """ANSWERS = [5.0, 5.0, 6.0]


def training_data(folder):
    (folder / "offset.txt").write_text("0.5")


def held_out(folder):
    (folder / "questions.txt").write_text("a b c")


def sample_predictions():
    return [0.0, 0.0, 0.0]


def score(predictions):
    if len(predictions) != 3:
        raise ValueError(f"{len(predictions)} predictions, 3 are wanted")
    return sum(abs(a - b) for a, b in zip(predictions, ANSWERS)) / 3
"""


def write_problem(
    folder: Path,
    changes: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
    *,
    pinned: bool = True,
) -> Path:
    """Write the problem with dotted fields of its TOML changed (None removes one) and files replaced; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = json.loads(json.dumps(TOML))
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        inside = tables
        for part in path:
            inside = inside.setdefault(part, {})
        inside[last] = value
        if value is None:
            del inside[last]
    (folder / "problem.toml").write_text(to_toml(tables), encoding="utf-8")
    texts = {"train.py": TRAIN, "predict.py": PREDICT, "frozen.py": FROZEN, "AGENDA.md": "Guess better.\n"}
    for name, text in (texts | (files or {})).items():
        (folder / name).write_text(text, encoding="utf-8")
    description, complaints = look(folder)
    if pinned and description is not None and not complaints:
        manifest.pin_problem(description)
    return folder


def to_toml(tables: dict[str, Any], prefix: str = "") -> str:
    """Write plain tables as TOML: a JSON value is one, but for the tables themselves."""
    lines = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for key, value in tables.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", to_toml(value, f"{prefix}{key}.")]
    text = "\n".join(lines)
    tomllib.loads(text) if not prefix else None
    return text
