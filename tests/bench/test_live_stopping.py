"""The live comparison without a machine: arms, their order, the file that it goes on from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from arl_core.config import load_config
from bench import live_stopping
from frozen_env.contract import Ending, Progress, RunResult, Score
from tests.arl_core.selfeval.campaigns import SCALE, reports

FINALS = [2.10, 2.05, 2.08, 2.06, 2.5, 2.5, 2.5, 2.5]  # four whole runs, then hopeless ones


class FakeHost:
    """Answers with simulated runs at once; asks the judge each tenth of the budget, as a supervisor does."""

    def __init__(self, dies_after: int = 1000) -> None:
        self.left = dies_after
        self.sources: list[str] = []

    def run(self, source: str, *, seed: int, place: Path, judge: Any) -> RunResult:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.sources.append(source)
        final = FINALS[seed % 1000] if seed % 1000 < len(FINALS) else 2.2
        run, verdicts = reports(final, seed=seed), []
        for tenth in range(1, 10) if judge else ():
            elapsed_s = 30.0 * tenth
            seen = tuple(r for r in run if r.elapsed_s <= elapsed_s)
            verdicts.append(judge(Progress(seen, elapsed_s, 300.0)))
            if verdicts[-1].stop:
                return RunResult(Ending.STOPPED, reports=seen, verdicts=tuple(verdicts), training_s=elapsed_s)
        score = Score("val_bpb", SCALE * final, "lower", 1, 1, 0.1, 0.1, 0.0)
        return RunResult(Ending.FINISHED, score=score, reports=run, verdicts=tuple(verdicts), training_s=300.0)


def compare(out: Path, host: Any) -> dict[str, Any]:
    options = argparse.Namespace(out=out, seeds=1, first_seed=0, training_s=2000.0, confirm=1)
    settings = {"environment.budget_s": 300.0, "environment.check_every_s": 30.0}
    return live_stopping.compare(options, load_config("embedded", settings), host)


def test_stopping_buys_experiments_at_equal_training_seconds(tmp_path: Path) -> None:
    found = compare(tmp_path / "live.jsonl", FakeHost())
    assert found["without"]["experiments"] == [6]
    assert found["with"]["experiments"][0] > 8
    assert found["with"]["stopped_early"][0] >= 4
    assert max(found["with"]["training_s"] + found["without"]["training_s"]) <= 2000
    assert found["with"]["best_val_bpb"] == found["without"]["best_val_bpb"] == [pytest.approx(SCALE * 2.05)]
    assert found["without"]["improving_runs_it_would_stop"] == [0]
    assert found["without"]["stopped_early"] == [0]


def test_both_arms_try_the_same_edit_while_they_stand_at_the_same_incumbent(tmp_path: Path) -> None:
    host = FakeHost()
    compare(tmp_path / "live.jsonl", host)
    assert host.sources[0] == host.sources[1]
    assert host.sources[2] == host.sources[3] != host.sources[0]


def test_an_interrupted_comparison_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = compare(tmp_path / "whole.jsonl", FakeHost())
    out = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        compare(out, FakeHost(dies_after=5))
    with out.open("a") as file:
        file.write('{"seed": 0, "arm": "wi')  # killed in the middle of a line
    host = FakeHost()
    assert compare(out, host) == whole
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert len(lines) == 1 + 5 + len(host.sources)


def test_a_file_of_another_comparison_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "live.jsonl"
    out.write_text(json.dumps({"environment": {}, "alpha": 0.1, "training_s": 1.0}) + "\n")
    with pytest.raises(ValueError, match="name another file with --out"):
        compare(out, FakeHost())
