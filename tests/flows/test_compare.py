"""Arms at equal budget: what is asked for, what is told, and that an interrupted comparison goes on."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prefect.server.api import server
from scipy import stats

from arl_core.arms import ARMS, ArmRun, gain_against, interval
from arl_core.config import load_config
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State
from arl_core.resuming import share_cores
from bench.report import invented_campaign
from flows import compare, slots
from flows.compare import Plan
from frozen_env.contract import Ending, RunResult, Score
from frozen_env.runtime import gpu_lock


def options(**changed: object) -> argparse.Namespace:
    known = {
        "arms": "seed,rl",
        "seeds": 2,
        "hours": 0.5,
        "reruns": 0,
        "preset": "embedded",
        "out": Path("out"),
        "set": [],
    }
    return argparse.Namespace(**(known | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": "seed,magic"}, "unknown arm 'magic'; there are: seed, random, random_critic, greedy, rl"),
        ({"arms": " , "}, "unknown arm"),
        ({"seeds": 0}, "--seeds must be 1 or more"),
        ({"set": ["policy.learn=false"]}, "policy.learn is what the comparison sets itself"),
        ({"set": ["policy.clop=1"]}, "unknown setting"),
        ({"arms": "seed,random_critic", "set": ["policy.choices=1"]}, "nothing to choose from"),
    ],
)
def test_what_makes_no_comparison_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        compare.plan(options(**changed))


def test_every_arm_is_a_valid_campaign_and_only_rl_learns():
    learns = {arm: load_config("embedded", settings).policy.learns for arm, settings in ARMS.items()}
    assert learns == {"seed": False, "random": False, "random_critic": False, "greedy": False, "rl": True}


def took(began_s: float, ended_s: float) -> dict[str, object]:
    """Fields of an experiment that began and ended so many seconds after noon."""
    ended = datetime.fromisoformat("2026-11-23T12:00:00.000+00:00") + timedelta(seconds=ended_s)
    return {"created_at": ended.isoformat(timespec="milliseconds"), "costs": {"iteration": ended_s - began_s}}


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, list[tuple[str, int, bool]]]:
    """A plan of two arms and two seeds whose campaigns are invented: 36 seconds an experiment."""
    started: list[tuple[str, int, bool]] = []

    def invent(_preset: str, _most: int, resume: str | None, settings: dict) -> None:
        path = Path(settings["memory"])
        arm, seed = path.parent.name.rsplit("-", 1)
        started.append((arm, int(seed), resume is not None))
        campaign, made = invented_campaign(5, seed=int(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = Memory(path)
        if resume is None:
            memory.create_campaign(campaign)
        first = memory.next_index(campaign.id)
        room = round(settings["stop.hours"] * 3600 / 36)
        for one in made[first : first + max(1, room)]:
            memory.commit_iteration(dataclasses.replace(one, **took(36 * one.index, 36 * (one.index + 1))), State())
        memory.close()

    monkeypatch.setattr(compare, "research", invent)
    return Plan("embedded", ("seed", "rl"), 2, 0.05, 0, tmp_path / "out", {}), started


def test_arms_take_turns_and_a_finished_one_is_not_run_again(comparison):
    plan, started = comparison
    compare.compare(plan)
    assert [begun[:2] for begun in started] == [("seed", 0), ("rl", 0), ("rl", 1), ("seed", 1)]
    again = len(started)
    result = compare.compare(plan)
    assert started[again:] == []
    assert {run["seed"] for run in result["arms"]["rl"]} == {0, 1}
    assert result["summary"]["rl"]["best"]["count"] == 2
    assert result["conditions"]["hours"] == 0.05


def test_campaigns_of_other_settings_are_never_mixed_in(comparison):
    plan, _ = comparison
    compare.compare(plan)
    other = Plan(plan.preset, plan.arms, plan.seeds, 0.06, 0, plan.out, {})
    with pytest.raises(ConfigError, match="comparison of other settings"):
        compare.compare(other)


# --- wall clock -------------------------------------------------------------------------------------------------------


def written(folder: Path, *experiments: tuple[float, float, bool]) -> Path:
    """A memory of experiments (begun, ended, first), in seconds; `first`: proposed before its start had committed any."""
    path = folder / "memory.duckdb"
    campaign, (seed,) = invented_campaign(0)
    with contextlib.closing(Memory(path)) as memory:
        memory.create_campaign(campaign)
        for index, (began_s, ended_s, first) in enumerate(experiments):
            one = dataclasses.replace(seed, index=index, **took(began_s, ended_s))
            one.costs.update({} if first else {"before/between": 0.5})
            memory.commit_iteration(one, State())
    return path


@pytest.mark.parametrize(
    ("experiments", "spent_s"),
    [
        ([], 0),
        ([(0, 30, True)], 30),
        ([(0, 30, True), (32, 60, False), (61, 100, False)], 100),
        ([(0, 30, True), (40, 100, False), (40, 110, False), (40, 120, False)], 120),
        ([(0, 30, True), (40, 200, False), (40, 80, False), (85, 120, False)], 200),
        ([(0, 30, True), (5000, 5060, True)], 90),
        ([(0, 30, True), (5000, 5060, True), (5000, 5100, True), (5065, 5120, False)], 150),
    ],
    ids=["none", "one", "in turn", "side by side", "a straggler", "resumed", "resumed side by side"],
)
def test_time_counts_once_and_an_interruption_not_at_all(tmp_path, experiments, spent_s):
    assert 3600 * compare.spent_hours(written(tmp_path, *experiments)) == pytest.approx(spent_s)


def test_the_hours_end_a_campaign_before_its_count_does_however_many_slots_there_are():
    plans = [Plan("embedded", ("seed",), 1, 2.0, 0, Path("out"), {"parallel": slots}) for slots in (1, 8)]
    assert plans[1].most_experiments == 8 * plans[0].most_experiments


# --- re-runs ----------------------------------------------------------------------------------------------------------


class MadeUpHost:
    """A host that trains nothing: it remembers its environment and its GPU."""

    made: list[MadeUpHost]

    def __init__(self, spec, _data, _stderr, gpu) -> None:
        self.spec, self.gpu, self.sandbox = spec, gpu, "on"
        self.environment_digest = f"{spec.threads} threads"
        MadeUpHost.made.append(self)

    def start(self) -> None: ...

    def wait_ready(self) -> None: ...

    def close(self) -> None: ...


def one_campaign(plan: Plan, digest: str = "1 threads") -> None:
    """The plan's only campaign, with experiment 0 in it, as flows.research would have written it down."""
    config = share_cores(load_config(plan.preset, plan.settings), plan.settings, cores=2)
    memory_path = plan.folder("seed", 0) / "memory.duckdb"
    memory_path.parent.mkdir(parents=True)
    with contextlib.closing(Memory(memory_path)) as memory:
        memory.create_campaign(Campaign("c", plan.preset, config.to_json(), digest, 0, "", "language_model"))
        known = {"value": 1.6, "environment_digest": digest, "source": "x = 1", "source_hash": "x"}
        memory.commit_iteration(Experiment("c", 0, "kept", **known, **took(0, 3600 * plan.hours)), State())


@pytest.fixture
def seeds_run(monkeypatch, tmp_path) -> list[int]:
    """The seeds of all runs on made-up hosts, on a machine of two cores and one GPU."""
    found: list[int] = []

    def train(host, _source, seed, *_) -> RunResult:
        if host.gpu is not None:
            assert gpu_lock._try(host.gpu.name, tmp_path) is None, "locked while it runs"
        found.append(seed)
        return RunResult(Ending.FINISHED, score=Score("val_bpb", 1.5, "lower"))

    MadeUpHost.made = []
    monkeypatch.setattr(slots, "Host", MadeUpHost)
    monkeypatch.setattr(slots, "train", train)
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a"])
    monkeypatch.setattr(gpu_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    return found


def test_re_runs_have_the_threads_that_the_campaign_shared_out(tmp_path, seeds_run):
    plan = Plan("embedded", ("seed",), 1, 1.0, 2, tmp_path / "out", {"parallel": 2})
    assert load_config("embedded").environment.threads == 2, "not what a slot of two has"
    one_campaign(plan)
    result = compare.compare(plan)
    assert [host.spec.threads for host in MadeUpHost.made] == [1], "and one slot is enough"
    assert seeds_run == [900_001, 900_002]
    assert result["arms"]["seed"][0]["rerun"] == 1.5


def test_a_program_that_fails_on_a_fresh_seed_has_no_mean_and_only_the_seeds_asked_for_count(tmp_path):
    plan = Plan("embedded", ("seed",), 1, 1.0, 3, tmp_path / "out", {"parallel": 2})
    one_campaign(plan)
    path = plan.folder("seed", 0) / "reruns.json"

    def reruns(values: dict[str, float | None]) -> ArmRun:
        path.write_text(json.dumps({"source_hash": "", "values": values}), encoding="utf-8")
        return compare.result(plan, "seed", 0)

    whole = {"900001": 1.5, "900002": 1.6, "900003": 1.7}
    assert reruns(whole | {"900004": 9.0, "900005": 9.0}).rerun == pytest.approx(1.6), "a call with more came before"
    failed = reruns(whole | {"900002": None})
    assert (failed.rerun, failed.failed_reruns) == (None, 1)
    assert compare._rerun_words([reruns(whole), failed]) == "1.6000 (n=1), 1 failed"
    assert reruns({"900001": 1.5}).rerun is None, "cut off: the next call runs the others"


def test_re_runs_in_another_frozen_environment_are_refused(tmp_path, seeds_run):
    plan = Plan("embedded", ("seed",), 1, 1.0, 1, tmp_path / "out", {"parallel": 2})
    one_campaign(plan, digest="of last year")
    with pytest.raises(
        ConfigError, match=r"seed 0 ran on frozen environment of last year, this is 1 threads.*reruns 0"
    ):
        compare.compare(plan)
    assert seeds_run == []


def test_re_runs_hold_their_gpu(tmp_path, seeds_run):
    settings = {"environment.device": "cuda"}
    plan = Plan("embedded", ("seed",), 1, 1.0, 1, tmp_path / "out", settings)
    one_campaign(plan, digest="2 threads")
    compare.compare(plan)
    assert [host.gpu.name for host in MadeUpHost.made] == ["a"]
    assert seeds_run == [900_001]
    gpu_lock.hold(["a"]).close()  # given back


def test_a_prefect_server_of_a_comparison_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "subprocess", subprocess)
    begun = []
    monkeypatch.setattr(compare, "compare", lambda _plan: begun.append(server.subprocess))
    assert compare.main(["--out", str(tmp_path)]) == 0
    (used,) = begun
    assert used is not subprocess, "servers are begun through flows.mortal"
    assert used.PIPE is subprocess.PIPE


def run(arm: str, seed: int, rerun: float | None) -> ArmRun:
    return ArmRun(arm, seed, 10, 8, 1, 1.6, 1.5, 3, rerun, 0.1)


def test_intervals_are_students_and_pairs_go_by_seed():
    told = interval([1.0, 2.0, None, 3.0])
    assert (told.mean, told.count) == (2.0, 3)
    assert told.half == pytest.approx(stats.t.ppf(0.975, 2) / 3**0.5)
    assert interval([1.0]).half is None
    assert interval([None]) is None
    base = [run("seed", 0, 1.6), run("seed", 1, 1.7)]
    arms = [run("rl", 1, 1.5), run("rl", 0, 1.4), run("rl", 2, 0.1)]
    gain = gain_against(arms, base, "lower")
    assert (gain.mean, gain.count) == (pytest.approx(0.2), 2)


@pytest.mark.slow
def test_real_arms_share_the_loop(tmp_path: Path, prepared_data: Path):
    from tests.flows.test_campaign import QUICK

    quick = QUICK | {"confirm.enabled": False}
    plan = Plan("embedded", ("seed", "random", "greedy", "rl"), 1, 0.006, 1, tmp_path / "out", quick)
    result = compare.compare(plan)
    for arm in plan.arms:
        (one,) = result["arms"][arm]
        assert one["experiments"] >= 1, arm
        assert one["best"] is not None
        assert one["rerun"] is not None
    experiments = Memory(plan.folder("seed", 0) / "memory.duckdb", read_only=True).experiments
    (campaign,) = Memory(plan.folder("seed", 0) / "memory.duckdb", read_only=True).campaigns()
    assert len({each.source_hash for each in experiments(campaign.id)}) == 1
