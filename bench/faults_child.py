"""The process that bench.faults kills: a real campaign through its command line's entry, with a stand-in for training."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

# Imported before the fork, so that a campaign starts in a moment
import mlflow  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401

import arl_core.policy.policy  # noqa: F401
import flows.slots
import flows.under_way
from bench import fault_points
from bench.answering_node import KILLED
from flows.research import main
from frozen_env.runtime.supervisor import Host


class AnsweringHost(Host):
    """The real supervisor around a process whose candidates answer at once."""

    module = "bench.answering_node"

    def environment(self) -> dict[str, str]:
        return super().environment() | {KILLED: os.environ.get(KILLED, "")}


def run(place: Path, settings: dict[str, Any], point: str, occurrence: int) -> NoReturn:
    """Begin the campaign at `place`, or resume it if it has begun, and exit with the command line's code."""
    code = 70
    try:
        _log_to(place)
        torch.seed()  # as PyTorch does in a process that was not forked: from the operating system
        flows.slots.Host = AnsweringHost  # type: ignore[misc]
        # Kills at random meet a run twice now and then, and no edit is to blame for ours.
        flows.under_way.MOST_DEATHS = 1000
        if point:
            fault_points.arm(point, occurrence)
        memory = place / "memory.duckdb"
        words = ["--preset", "embedded", "--set", f"memory={memory}"]
        if begun(memory):
            words += ["--resume", "latest"]
        else:
            words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_under_worker(place: Path, settings: dict[str, Any], port: int) -> NoReturn:
    """The same through a deployment and a Prefect worker, in a program of its own."""
    _log_to(place)
    memory = place / "memory.duckdb"
    parameters = {"resume": "latest"} if begun(memory) else {}
    chosen = {"memory": str(memory)} | ({} if parameters else settings)
    words = [str(place), str(port), json.dumps(parameters | {"settings": chosen})]
    os.execv(sys.executable, [sys.executable, "-m", "bench.faults_worker", *words])


def _log_to(place: Path) -> None:
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def begun(path: Path) -> bool:
    """Whether a campaign is in this memory."""
    from arl_core.memory import Memory

    if not path.exists():
        return False
    memory = Memory(path)
    try:
        return bool(memory.campaigns())
    finally:
        memory.close()
