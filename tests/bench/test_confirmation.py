"""The simulation of confirmation: its promise, its accounting, its contract."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest

from arl_core.config import ConfirmSettings
from bench import confirmation
from bench.confirmation import Campaign, World, normal_noise, play, realistic_figures

SETTINGS = ConfirmSettings()


def campaigns(rule: str, better: float, count: int, experiments: int = 100, **changes: object) -> list[Campaign]:
    world = World(normal_noise, 0.5, better)
    settings = SETTINGS.model_copy(update=changes)
    return [play(world, rule, settings, experiments, 0, 8, [20261124, seed]) for seed in range(count)]


def test_in_pure_noise_fewer_than_one_campaign_in_twenty_ends_with_a_false_best():
    played = campaigns("ours", 0.0, 200)
    assert sum(bool(one.gains) for one in played) < 10
    assert 5 < np.mean([one.reruns for one in played]) < 60, "and it is not by never looking"


def test_keeping_any_better_single_run_ends_in_a_false_best_nearly_always():
    assert np.mean([bool(one.gains) for one in campaigns("any", 0.0, 50)]) > 0.9


def test_what_is_truly_better_by_three_sigma_is_mostly_found():
    found = realistic_figures(campaigns("ours", 0.08, 100))
    assert found["power_by_sigma"]["2.5-3"] > 0.6
    assert found["power_by_sigma"]["1-1.5"] < found["power_by_sigma"]["2.5-3"]
    assert found["false_share_of_promotions"] < 0.05


def test_a_rule_of_one_look_takes_its_pairs_and_no_more():
    for one in campaigns("fixed", 0.3, 20, experiments=10):
        assert all(pairs == 8 for pairs in one.pairs)


def test_every_rerun_is_charged():
    world = World(normal_noise, 0.0, 0.0)
    quiet = SETTINGS.model_copy(update={"second_look": 100.0})  # nothing is ever looked at again
    done = play(world, "ours", quiet, 10, 0, 8, 1)
    assert (done.experiments, done.reruns, done.tests) == (10, SETTINGS.baseline_repeats, 0)
    assert play(world, "any", SETTINGS, 10, 0, 8, 1).reruns == 0


def test_at_equal_cost_the_budget_counts_every_run():
    world = World(normal_noise, 0.5, 0.1)
    done = play(world, "ours", SETTINGS, 0, 60, 8, 3)
    assert 60 <= 1 + done.experiments + done.reruns < 60 + 2 * SETTINGS.max_reruns + 2


def write_trials(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with duckdb.connect() as db:
        db.execute("create table t (DEPTH int, WIDTH int, method varchar, val_bpb double)")
        for depth in range(4):
            for trial in range(8):
                value = None if trial == 7 else 1.0 + 0.001 * depth + rng.normal(0, 0.0005 * (1 + depth))
                db.execute("insert into t values (?, 64, ?, ?)", [depth, f"m{trial % 2}", value])
        db.execute("insert into t values (9, 64, 'm0', 1.5)")
        db.execute(f"copy t to '{path}' (format parquet)")
    return path


def test_residuals_of_real_trials_are_those_of_repeated_configurations(tmp_path: Path):
    groups = confirmation.read_residuals(write_trials(tmp_path / "trials.parquet"))["all"]
    assert [len(group) for group in groups] == [7, 7, 7, 7], "failures and what was tried once are left out"
    assert np.median([group.std() for group in groups]) == pytest.approx(1.0, rel=0.01)
    assert all(abs(group.mean()) < 1e-9 for group in groups)


def test_the_json_has_every_kind_of_noise_and_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trials = write_trials(tmp_path / "trials.parquet")
    words = ["--campaigns", "3", "--experiments", "20", "--runs", "30", "--rules", "any,mean4,e-value,ours", "--json"]
    first = confirmation.main([*words, "--noise", str(trials)])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(json.dumps(first))
    assert list(printed["noise"]) == ["pooled", "competitive", "file"]
    for rules in printed["noise"].values():
        assert list(rules) == ["any", "mean4", "e-value", "ours"]
        assert rules["ours"]["pure_noise"]["reruns"]["mean"] >= SETTINGS.baseline_repeats
        low, high = rules["any"]["pure_noise"]["false_best"]["ci95"]
        assert 0 <= low <= rules["any"]["pure_noise"]["false_best"]["share"] <= high <= 1
    assert confirmation.main([*words, "--noise", str(trials)]) == first, "seeded"


def test_a_file_without_repeats_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "none.parquet"
    duckdb.sql("select 1 as DEPTH, 1.0 as val_bpb").write_parquet(str(path))
    with pytest.raises(ValueError, match=r"none\.parquet"):
        confirmation.read_residuals(path)
