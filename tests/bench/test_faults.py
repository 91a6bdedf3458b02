"""The short version of bench.faults, and proof that it would notice: a comparison that cannot fail proves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from arl_core.memory import Memory
from arl_core.patch import Patch
from arl_core.policy.rollout import Rollout
from arl_core.records import Campaign, Experiment, State, source_hash
from arl_core.repeats import Repeat, Repeats, Role
from bench import fault_points, faults_compare
from bench.answering_node import KILLED
from flows.costs import Costs
from flows.unsettled import Landed, Proposal, pack
from frozen_env.contract import Ending, RunResult
from frozen_env.runtime import processes

ROOT = Path(__file__).resolve().parents[2]
KILLS = 4


@pytest.mark.timeout(900)
def test_a_campaign_that_is_killed_and_resumed_is_the_same_as_one_that_was_not(server):
    command = [
        sys.executable,
        "-m",
        "bench.faults",
        "--kills",
        str(KILLS),
        "--seed",
        "2",
        "--server",
        server.url,
        "--json",
    ]
    environment = server.environment | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    wanted = {"kills": KILLS, "resumed": KILLS, "lost": 0, "duplicated": 0, "orphans": 0, "inconsistent": 0}
    assert figures == wanted


def test_every_point_has_its_turn_and_the_rest_comes_at_random():
    blows = fault_points.plan(50, 0, server=True)
    assert len(blows) == 50
    assert {point for target, point, _ in blows if point} == set(fault_points.POINTS)
    assert {target for target, point, _ in blows if not point} == {"flow", "host", "candidate", "worker", "server"}
    without_our_own_server = {target for target, _, _ in fault_points.plan(50, 0, server=False)}
    assert without_our_own_server == {"flow", "host", "candidate"}


HOST = """
import json
from bench import answering_node
from frozen_env.spec import EnvironmentSpec, read_preset
answering_node.CANDIDATE_S = 120.0
spec = EnvironmentSpec.from_json(read_preset("embedded")["environment"])
print(json.dumps(answering_node.run(spec, "MUON_LR = 0.01", 3).to_json()))
"""


def test_a_candidate_killed_from_outside_ends_as_one_that_dies_by_itself():
    """What a campaign with a killed candidate is compared with must differ in nothing else."""

    def host(**environment: str) -> subprocess.Popen[str]:
        env = os.environ | environment
        return subprocess.Popen([sys.executable, "-c", HOST], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)

    doomed = host(**{KILLED: f"{source_hash('MUON_LR = 0.01')}:3"})
    alone, _ = doomed.communicate(timeout=240)
    victim = host()
    while not processes.children(victim.pid):
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(processes.children(victim.pid)[0], signal.SIGKILL)
    from_outside, _ = victim.communicate(timeout=240)
    assert json.loads(from_outside) == json.loads(alone)
    assert json.loads(alone)["reason"] == "killed by SIGKILL"


def test_killed_candidates_are_found_among_first_runs_and_re_runs(tmp_path):
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(Campaign("c", "embedded", {}, "digest", 0, "2026-11-24T00:00:00+00:00", "text"))
    killed = {"status": "crashed", "reason": "killed by SIGKILL", "value": None}
    memory.commit_iteration(Experiment("c", 0, "kept", value=1.0, source_hash="a"), State())
    memory.commit_iteration(Experiment("c", 1, source_hash="b", seed=7, cause="signal", **killed), State())
    told = "its re-run on seed 8 gave no score (killed by SIGKILL)"
    memory.commit_iteration(Experiment("c", 2, "crashed", reason=told, source_hash="d", seed=0, value=0.9), State())
    Repeats(memory).add(Repeat("c", 2, Role.CANDIDATE, "d", 8, None, "killed by SIGKILL"))
    memory.close()
    assert faults_compare.killed_candidates(tmp_path) == {"b:7", "d:8"}


def test_an_unknown_point_is_refused():
    with pytest.raises(ValueError, match="'after lunch'"):
        fault_points.arm("after lunch", 1)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A finished campaign of three experiments on disk."""
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(Campaign("c", "embedded", {}, "digest", 0, "2026-11-24T00:00:00+00:00", "text"))
    for index in range(3):
        memory.commit_iteration(experiment(index), state())
    memory.close()
    file = tmp_path / "campaigns" / "c" / "policy" / "step_000001" / "policy.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(save({"parameter/a": torch.tensor([1.0, 2.0])}))
    file.with_name("state.json").write_text('{"statistics": {"version": 1}}')
    runs = [("campaign ", "FINISHED"), *((f"experiment {index}", "FINISHED") for index in range(3))]
    monkeypatch.setattr(faults_compare, "_mlflow", lambda *_: list(runs))
    return tmp_path


def experiment(index: int, **fields) -> Experiment:
    costs = {"training": float(os.getpid() + index)}
    return Experiment("c", index, "discarded", value=1.0 + index, source="x", **({"costs": costs} | fields))


def state(**values) -> State:
    return State({"policy_step": 1, "checkpoints": [["step_000001", "d", 1]], **values})


def test_the_same_campaign_shows_no_difference(place):
    truth = faults_compare.read(place)
    truth["experiments"] = [dict(one) for one in truth["experiments"]]
    assert faults_compare.against(truth, place) == (0, 0, [])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"reward": 0.5}, "experiment 1 differs in reward"),
        ({"prompt": "other"}, "experiment 1 differs in prompt"),
        ({"extra": {"update": {"approx_kl": 0.1}}}, "experiment 1 differs in extra"),
    ],
)
def test_a_changed_field_is_noticed(place, harm, words):
    truth = faults_compare.read(place)
    changed = dataclasses.replace(experiment(1), **harm)
    truth["experiments"][1] = faults_compare._comparable(changed.to_json())
    _, _, differences = faults_compare.against(truth, place)
    assert [line.split(":")[0] for line in differences] == [words]


def test_times_and_seconds_are_no_difference():
    def update(seconds: float, kl: float) -> dict:
        return faults_compare._comparable(
            experiment(1, extra={"update": {"update_seconds": seconds, "kl": kl}}).to_json()
        )

    assert update(3.0, 0.1) == update(4.0, 0.1)
    assert update(3.0, 0.1) != update(3.0, 0.2)
    later = experiment(1, costs={"training": 9.0}, created_at="2030-01-01T00:00:00+00:00")
    assert faults_compare._comparable(later.to_json()) == faults_compare._comparable(experiment(1).to_json())


def test_a_lost_experiment_a_double_run_and_another_policy_are_noticed(place, monkeypatch):
    truth = faults_compare.read(place)
    truth["experiments"].append({"index": 3})
    assert faults_compare.against(truth, place)[0] == 1
    monkeypatch.setattr(
        faults_compare, "_mlflow", lambda *_: [("experiment 1", "FINISHED"), ("experiment 1", "RUNNING")]
    )
    lost, twice, differences = faults_compare.against(truth, place)
    assert (lost, twice) == (1, 1)
    assert "mlflow differs" in differences
    checkpoint = place / "campaigns" / "c" / "policy" / "step_000001"
    (checkpoint / "policy.safetensors").write_bytes(save({"parameter/a": torch.tensor([1.0, 2.5])}))
    (checkpoint / "state.json").write_text('{"statistics": {"version": 2}}')
    told = faults_compare.against(truth, place)[2]
    assert "policy differs in 2 parts, at most by 0.5: parameter/a, state.json" in told


def test_a_campaign_side_by_side_is_judged_by_itself(place, monkeypatch):
    assert faults_compare.by_itself(place, 3, {}) == (0, 0, [])
    assert faults_compare.by_itself(place, 4, {})[0] == 1
    rollout = Rollout.foreign("prompt", "completion", 0)
    landed = Landed(Proposal(4, 0, 1.0, rollout, Patch("y = 1"), 0, Costs(None)), RunResult(Ending.FINISHED))
    memory = Memory(place / "memory.duckdb")
    Repeats(memory).add(Repeat("c", 1, Role.FIRST, "a program that is gone", 0, 0.5))
    memory.commit_state("c", State(blob=pack([], [landed])))
    memory.close()
    assert faults_compare.waiting(place) == {4: source_hash("y = 1")}
    runs = [("experiment 1", "FINISHED"), ("experiment 1", "RUNNING"), ("experiment 2", "FAILED")]
    monkeypatch.setattr(faults_compare, "_mlflow", lambda *_: runs)
    assert faults_compare.by_itself(place, 3, {2: "another that is gone"}) == (
        0,
        1,
        [
            "the run of experiment 1 had ended, and another program stands there",
            "the run of experiment 2 had ended, and another program stands there",
            "experiment 4 still waits for its second look",
            "MLflow lacks experiment 0",
            "MLflow's run of experiment 1 still runs",
        ],
    )
