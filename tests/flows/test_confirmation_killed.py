"""A real campaign, killed between two re-runs of a second look: it goes on where it was, and repeats nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arl_core.memory import Memory
from arl_core.repeats import Repeats, Role
from tests.flows.test_campaign import QUICK

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import sys
import flows.iteration
import flows.research
from dataclasses import replace
from arl_core.policy.rollout import EditBlock
original = flows.iteration.propose
def propose(*arguments):
    _, _, source, *_ = arguments
    rollout = original(*arguments)
    line = next(line for line in source.splitlines(keepends=True) if line.startswith("EMBED_LR = "))
    return replace(rollout, blocks=(EditBlock(line, "EMBED_LR = 0.3\\n"),))
flows.iteration.propose = propose
sys.exit(flows.research.main(sys.argv[1:]))
"""


def command(folder: Path, *words: str) -> list[str]:
    quick = QUICK | {
        "environment.budget_s": 3.0,  # on a busy machine 1.5 s were five steps, and the improvement drowned in the noise
        "environment.check_every_s": 0.5,
        "target.EMBED_LR": 1e-6,  # a target that hardly learns: the edit is a real improvement
        "target.MUON_LR": 1e-6,
        "confirm.baseline_repeats": 2,
        "confirm.second_look": 0.0,
        "tracking": "false",
    }
    quick = {} if "--resume" in words else quick
    sets = [
        part
        for key, value in (quick | {"memory": folder / "memory.duckdb"}).items()
        for part in ("--set", f"{key}={value}")
    ]
    return [sys.executable, "-c", DRIVER, "--preset", "embedded", *words, *sets]


@pytest.mark.timeout(900)  # two starts of Prefect's server, on a machine that may be busy
@pytest.mark.usefixtures("prepared_data")
def test_a_real_campaign_killed_between_re_runs_goes_on_where_it_was(tmp_path: Path):
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONUNBUFFERED": "1"}
    started = {"cwd": ROOT, "env": environment, "text": True, "stderr": subprocess.STDOUT}
    first = subprocess.Popen(
        command(tmp_path, "--iterations", "1"), stdout=subprocess.PIPE, start_new_session=True, **started
    )
    seen: list[str] = []
    with first:
        assert first.stdout is not None
        try:
            for line in first.stdout:
                seen.append(line)
                if "confirming #1: candidate on seed 2" in line:  # the pair on seed 1 is committed
                    break
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL, "".join(seen)
    memory = Memory(tmp_path / "memory.duckdb")
    before = Repeats(memory).of(memory.get_campaign().id)
    assert [(row.role, row.seed) for row in before if row.index == 1] == [(Role.FIRST, 0), (Role.CANDIDATE, 1)]
    assert memory.next_index(memory.get_campaign().id) == 1
    done = subprocess.run(
        command(tmp_path, "--resume", "latest", "--iterations", "1"),
        stdout=subprocess.PIPE,
        timeout=600,
        check=False,
        **started,
    )
    assert done.returncode == 0, done.stdout
    assert "starting the candidate" not in done.stdout, "its first run was paid for"
    after = Repeats(memory).of(memory.get_campaign().id)
    assert after[: len(before)] == before
    keys = [(row.source_hash, row.seed, row.role) for row in after]
    assert len(keys) == len(set(keys))
    experiment = memory.experiment(memory.get_campaign().id, 1)
    assert experiment is not None
    assert experiment.confirmations == sum(row.role is Role.CANDIDATE for row in after)
    assert experiment.extra["confirmation"]["runs"] == sum(
        row.role is not Role.FIRST for row in after if row.index == 1
    )
