"""bench.gpu without a GPU: what it works out of runs and experiments, and what it says where there is nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import pytest

import bench.gpu
from arl_core.config import load_config
from bench.gpu import of_campaign, of_runs, require_device, slowdown, table
from bench.loader import goal_step_s
from frozen_env.contract import Ending, ResearchError, RunResult, Score
from frozen_env.runtime.performance import figures
from frozen_env.spec import EnvironmentSpec


def run(tokens_per_s: float, device: str = "NVIDIA H100 80GB HBM3") -> RunResult:
    told = {"forward_flops_per_token": 2e8, "peak_vram_mb": 1e4, "waited_s": 1.0}
    known = figures(
        reports=(), training_s=300.0, budget_s=300.0, tokens=int(300 * tokens_per_s), device_name=device, told=told
    )
    score = Score("val_bpb", 1.0, "lower", 1, 1, seconds=6.0, startup_s=3.0, probe_max_diff=0.0)
    return RunResult(
        Ending.FINISHED, score=score, startup_s=20.0, training_s=300.0, scoring_s=9.0, extra={"performance": known}
    )


def experiment(**costs: float) -> Any:
    return SimpleNamespace(costs=costs)


def test_medians_are_over_runs_and_unknown_figures_are_none() -> None:
    known = of_runs([run(1e6), run(1.2e6), run(2e6)], 300.0)
    assert known["tokens_per_s"] == pytest.approx(1.2e6)
    assert known["mfu"] == pytest.approx(6e8 * 1.2e6 / 989e12)
    assert known["scoring_share"] == pytest.approx(0.03)
    assert known["scoring_answers_share"] == pytest.approx(0.02)
    assert known["step_share"] is None
    assert of_runs([run(1e6, device="cpu")], 300.0)["mfu"] is None


def test_the_sandboxes_slowdown_is_within_seeds() -> None:
    inside, outside = [run(0.99e6), run(1.98e6), run(2.97e6)], [run(1e6), run(2e6), run(3e6)]
    assert slowdown(inside, outside) == pytest.approx(0.01)


def test_shares_of_a_campaign() -> None:
    whole = {
        "propose": 10.0,
        "update": 20.0,
        "run": 310.0,
        "training": 300.0,
        "iteration": 345.0,
        "before/between": 5.0,
    }
    refused = {"propose": 1.0, "iteration": 2.0}
    known = of_campaign([experiment(**whole), experiment(**refused)])
    assert known["policy_share"] == pytest.approx(31 / 310)
    assert known["training_share"] == pytest.approx(300 / 350)
    assert known["parts"]["update"] == 20.0


def test_a_campaign_that_was_not_run_is_not_measured() -> None:
    lines = table(of_campaign([]))
    assert any(line.startswith("policy_share") and line.endswith("not measured") for line in lines)


def test_the_goals_step_takes_what_the_presets_arithmetic_says() -> None:
    products = 12 * 12 * 768 * 768 + 768 * 8192
    operations = 6 * products + 12 * 12 * 768 * 2048
    assert goal_step_s() == pytest.approx(40 * 2048 * operations / (0.45 * 989e12))


def test_without_a_gpu_the_preset_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ResearchError, match=r"sees none.*--preset embedded"):
        require_device(load_config("overnight"))
    require_device(load_config("embedded"))


class HostThatAnswers:
    """Stands in for a host: runs nothing, and is a hundredth faster without the sandbox."""

    sandboxes: ClassVar[list[str]] = []

    def __init__(self, spec: EnvironmentSpec, *_: Any) -> None:
        self.spec = spec

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, source: str, *, seed: int, place: Path) -> RunResult:
        assert "DEPTH = 2" in source, "the preset's constants"
        self.sandboxes.append(self.spec.sandbox)
        return run(1e6 if self.spec.sandbox == "on" else 1e6 / 0.99)


def test_the_script_runs_each_seed_both_ways_and_prints_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.gpu, "Host", HostThatAnswers)
    monkeypatch.setattr(bench.gpu, "set_up", lambda _arguments: 0)
    assert bench.gpu.main(["--preset", "embedded", "--runs", "2", "--campaign", "0", "--json"]) == 0
    assert HostThatAnswers.sandboxes == ["on", "off", "off", "on"]
    known = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert known["sandbox_slowdown"] == pytest.approx(0.01)
    assert known["tokens_per_s"] == pytest.approx(1e6)
    assert known["seeds"] == [0, 1]
    assert known["policy_share"] is None
    assert known["versions"]["torch"]


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu() -> None:
    settings = ["policy.model=tiny-random", "environment.budget_s=2", "environment.grace_s=5", "target.DEPTH=1"]
    command = [sys.executable, "-m", "bench.gpu", "--json", "--preset", "embedded", "--runs", "1", "--campaign", "1"]
    command += [word for item in settings for word in ("--set", item)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    known = json.loads(done.stdout.splitlines()[-1])
    assert known["device"] == "cpu"
    assert known["mfu"] is None
    assert known["tokens_per_s"] > 0
    assert known["sandbox"].startswith(("landlock", "bubblewrap"))
    assert known["experiments"] == 1
