"""The replay bench on curves made up here: its arithmetic, its contract, its isolation of groups."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest

from bench import stopping


def write_curves(path: Path, groups: int = 24, seed: int = 0) -> Path:
    """Write 3 runs per group, as in the public file: sparse held-out points, noisy training losses."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(groups):
        final_g, late = rng.normal(2.0, 0.06), rng.uniform(0.4, 0.6)
        for r in range(3):
            final = final_g + rng.normal(0, 0.002)
            for k in range(1, 61):
                f = k / 60
                loss = final + 0.25 * (f**-0.4 - 1) + 0.1 * min(1.0, (1 - f) / late)
                held = loss if k % 6 == 0 else None
                rows.append((f"{seed}-{g}", f"{g}-{r}", k, 600 * f, loss + rng.normal(0, 0.05), held))
    with duckdb.connect() as db:
        db.execute(
            'create table t ("group" varchar, run_id varchar, step int, time_s double, train_loss double, val_loss double)'
        )
        db.executemany("insert into t values (?, ?, ?, ?, ?, ?)", rows)
        db.execute(f"copy t to '{path}' (format parquet)")
    return path


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_curves(tmp_path_factory.mktemp("stopping") / "curves.parquet")


def test_the_json_is_the_one_that_scripts_rely_on(curves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--curves", str(curves), "--order", "improving", "--episodes", "3", "--alphas", "0.1,0.3", "--json"]
    stopping.main(arguments)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["rules"]) == ["none", "naive", "median", "hyperband", "ours"]
    assert {"throughput", "best_lost", "regret"} <= set(result["rules"]["ours"])
    assert [point[0] for point in result["frontier"]] == [0.1, 0.3]
    assert result["frontier"][0][1] <= result["frontier"][1][1]  # a larger alpha saves more
    assert result["oracle"]["0.05"] > result["oracle"]["0.95"] > 1
    assert result["rules"]["none"] == {"throughput": 1.0, "best_lost": 0.0, "regret": 0.0, "false_kill": 0.0}


def test_the_frontier_reaches_the_throughput_of_the_boldest_rule(curves: Path) -> None:
    runs = stopping.load(curves)
    drawn = stopping.draw(runs, "random", 2, 0)
    median, bold, cautious = (
        stopping.measure(runs, drawn, stopping.maker(rule, alpha, ()))["throughput"]
        for rule, alpha in (("median", 0.0), ("ours", stopping.ALPHAS[-1]), ("ours", stopping.ALPHAS[0]))
    )
    assert cautious < median < bold


def test_two_replays_of_one_seed_are_equal(curves: Path) -> None:
    arguments = ["--curves", str(curves), "--episodes", "2", "--alphas", "0.2", "--seed", "3"]
    assert stopping.main(arguments) == stopping.main(arguments)


def test_history_drops_the_groups_that_the_curves_hold(curves: Path, tmp_path: Path) -> None:
    runs = stopping.load(curves)
    assert stopping.earlier(runs, runs) == ()
    other = stopping.load(write_curves(tmp_path / "other.parquet", groups=4, seed=1))
    assert len(stopping.earlier([*runs, *other], runs)) == 12
    assert not any(run.own for run in stopping.earlier(other, runs))


def test_halves_share_no_group(curves: Path) -> None:
    first, second = stopping.split_by_group(stopping.load(curves), 0)
    assert not {run.group for run in first} & {run.group for run in second}
    assert len(first) + len(second) == 72


def test_an_episode_is_charged_for_what_it_ran(curves: Path) -> None:
    runs = stopping.load(curves)[:10]
    spent, regret, _, _ = stopping.play(runs, lambda run, look, completed: look == 9)
    assert spent == pytest.approx(4 + 6 * 0.5)
    assert regret == pytest.approx(min(r.final for r in runs[:4]) - min(r.final for r in runs))


def test_improving_episodes_improve(curves: Path) -> None:
    runs = stopping.load(curves)
    early, late = [], []
    for index in stopping.draw(runs, "improving", 40, 0):
        final = [runs[k].final for k in index]
        early.append(np.mean(final[:20]))
        late.append(np.mean(final[-20:]))
    assert np.mean(late) < np.mean(early) - 0.02


def test_a_file_without_enough_runs_is_refused_by_name(tmp_path: Path) -> None:
    runs = stopping.load(write_curves(tmp_path / "few.parquet", groups=1))
    with pytest.raises(ValueError, match="3"):
        stopping.draw(runs, "random", 1, 0)


def test_a_campaigns_memory_can_be_replayed(tmp_path: Path) -> None:
    from arl_core.memory import Memory
    from arl_core.records import Campaign, Experiment, State
    from frozen_env.contract import Status
    from tests.arl_core.selfeval.campaigns import SCALE, reports

    path = tmp_path / "memory.duckdb"
    memory = Memory(path)
    memory.create_campaign(Campaign("c1", "embedded", {}, "digest", 0, "2026-11-23T00:00:00+00:00", "text"))
    for index in range(7):
        final = 2.1 - 0.01 * index
        status = Status.STOPPED_EARLY if index == 5 else Status.KEPT
        value = None if index == 5 else SCALE * final
        run = Experiment("c1", index, status, value=value, reports=reports(final, n=40, seed=index))
        memory.commit_iteration(run, State(index=index))
    memory.close()
    runs = stopping.load(path)
    assert len(runs) == 6  # a stopped run has no final
    assert {run.group for run in runs} == {"c1"}
    assert [run.final for run in runs] == pytest.approx([2.1, 2.09, 2.08, 2.07, 2.06, 2.04], rel=0.02)
    assert stopping.main(["--curves", str(path), "--episodes", "2", "--alphas", ""])["rules"]["none"]["throughput"] == 1


def test_a_result_can_be_plotted(curves: Path, tmp_path: Path) -> None:
    from bench import stopping_plot

    result = stopping.main(["--curves", str(curves), "--episodes", "1", "--alphas", "0.2,0.6"])
    (tmp_path / "random.json").write_text(json.dumps(result))
    stopping_plot.main([str(tmp_path / "random.json"), "--out", str(tmp_path / "new" / "frontier.png")])
    assert (tmp_path / "new" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="name at least one"):
        stopping_plot.plot({}, tmp_path / "none.png")
