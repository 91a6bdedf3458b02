"""Arms at equal budget: what is asked for, what is told, and that an interrupted comparison goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from scipy import stats

from arl_core.arms import ARMS, ArmRun, gain_against, interval
from arl_core.config import load_config
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import State
from bench.report import invented_campaign
from flows import compare
from flows.compare import Plan


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
        ({"arms": "seed,magic"}, "unknown arm 'magic'; there are: seed, random, greedy, rl"),
        ({"arms": " , "}, "unknown arm"),
        ({"seeds": 0}, "--seeds must be 1 or more"),
        ({"set": ["policy.learn=false"]}, "policy.learn is what the comparison sets itself"),
        ({"set": ["policy.clop=1"]}, "unknown setting"),
    ],
)
def test_what_makes_no_comparison_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        compare.plan(options(**changed))


def test_every_arm_is_a_valid_campaign_and_only_rl_learns():
    learns = {arm: load_config("embedded", settings).policy.learns for arm, settings in ARMS.items()}
    assert learns == {"seed": False, "random": False, "greedy": False, "rl": True}


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, list[tuple[str, int, bool]]]:
    """A plan of two arms and two seeds whose campaigns are invented: 36 seconds an experiment."""
    started: list[tuple[str, int, bool]] = []

    def invent(_preset: str, _most: int, resume: str | None, settings: dict) -> None:
        path = Path(settings["memory"])
        arm, seed = path.parent.name.rsplit("-", 1)
        started.append((arm, int(seed), resume is not None))
        campaign, made = invented_campaign(20, seed=int(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = Memory(path)
        if resume is None:
            memory.create_campaign(campaign)
        first = memory.next_index(campaign.id)
        room = round(settings["stop.hours"] * 3600 / sum(made[1].costs.get(part, 0.0) for part in ("iteration",)))
        for one in made[first : first + max(1, room)]:
            memory.commit_iteration(one, State())
        memory.close()

    monkeypatch.setattr(compare, "research", invent)
    return Plan("embedded", ("seed", "rl"), 2, 0.05, 0, tmp_path / "out", {}), started


def test_arms_take_turns_and_a_finished_one_is_not_run_again(comparison):
    plan, started = comparison
    compare.compare(plan)
    assert [begun[:2] for begun in started] == [("seed", 0), ("rl", 0), ("rl", 1), ("seed", 1)]
    again = len(started)
    result = compare.compare(plan)
    finished = [arm for arm in started[again:] if not arm[2]]
    assert finished == [], "nothing starts anew"
    assert {run["seed"] for run in result["arms"]["rl"]} == {0, 1}
    assert result["summary"]["rl"]["best"]["count"] == 2
    assert result["conditions"]["hours"] == 0.05


def test_campaigns_of_other_settings_are_never_mixed_in(comparison):
    plan, _ = comparison
    compare.compare(plan)
    other = Plan(plan.preset, plan.arms, plan.seeds, 0.06, 0, plan.out, {})
    with pytest.raises(ConfigError, match="comparison of other settings"):
        compare.compare(other)


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
