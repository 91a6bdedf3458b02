"""The replay bench: an honest judge, arms that see only their own trials, results that resume."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest

from arl_core.config import load_config
from arl_core.edit import read_constants, write_constants
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.policy import choice, critic
from arl_core.records import Experiment, State
from bench.replay import __main__ as replay
from bench.replay import arms, language
from bench.replay.__main__ import in_time, main, paired, trace_of
from bench.replay.arms import NUMERIC
from bench.replay.language import ROOT, LanguageArm, made_with
from bench.replay.space import BASELINE
from bench.replay.surrogate import KINDS, Surrogate
from frozen_env.contract import Cause, Status

TINY = {
    "policy.model": "tiny-random",
    "policy.adapter": "none",
    "policy.device": "cpu",
    "policy.prompt_tokens": 900,
    "policy.batch_edits": 2,
    "policy.threads": 1,
}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented trials of three methods: val_bpb falls with MATRIX_LR near 0.02, large models fail."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        row = dict(BASELINE)
        if i:
            row |= {"DEPTH": int(rng.integers(4, 25)), "ASPECT_RATIO": int(rng.integers(32, 129))}
            row |= {"HEAD_DIM": int(rng.choice([64, 128, 256])), "WINDOW_PATTERN": str(rng.choice(["SSSL", "LLLL"]))}
            row |= {"DEVICE_BATCH_SIZE": int(rng.choice([64, 128])), "TOTAL_BATCH_SIZE": int(2 ** rng.integers(17, 20))}
            row |= {name: BASELINE[name] * float(np.exp(rng.uniform(-1.5, 1.5))) for name in BASELINE if "_LR" in name}
            row |= {
                name: float(rng.uniform(0.0, 0.5)) for name in BASELINE if name.endswith(("RATIO", "FRAC", "DECAY"))
            }
            row |= {"ASPECT_RATIO": int(rng.integers(32, 129)), "WARMDOWN_RATIO": float(rng.uniform(0.1, 0.8))}
        success = row["DEPTH"] * row["ASPECT_RATIO"] < 1600
        bpb = 0.98 + 0.02 * abs(np.log(row["MATRIX_LR"] / 0.02)) + 0.0005 * rng.normal()
        extra = {"method": f"m{i % 3}", "seed": 0, "trial": i, "success": success, "wall_s": 300.0 if success else 30.0}
        rows.append({**row, **extra, "val_bpb": float(bpb) if success else None})
    path = tmp_path_factory.mktemp("replay") / "trials.parquet"
    (path.parent / "trials.json").write_text(json.dumps(rows))
    duckdb.sql(f"copy (from '{path.parent / 'trials.json'}') to '{path}' (format parquet)")
    return path


@pytest.fixture(scope="module")
def judge(trials: Path) -> Surrogate:
    return Surrogate(trials)


def test_the_target_of_the_replay_starts_at_the_baseline() -> None:
    source = (ROOT / load_config("replay").source).read_text(encoding="utf-8")
    assert read_constants(source) == BASELINE
    assert list(BASELINE) == list(KINDS)


def test_the_judge_ranks_what_it_was_not_fitted_on_and_reports_it(judge: Surrogate) -> None:
    assert judge.quality.groups == 3
    assert judge.quality.success_auc > 0.95
    assert judge.quality.bpb_rank_correlation > 0.8
    good, bad = {**BASELINE, "MATRIX_LR": 0.02}, {**BASELINE, "MATRIX_LR": 0.15}
    assert judge.true_value(good) < judge.true_value(bad)
    assert judge.true_value({**BASELINE, "DEPTH": 24, "ASPECT_RATIO": 128}) is None


def test_noise_is_added_to_what_an_arm_sees_and_not_to_the_truth(judge: Surrogate) -> None:
    answers = [judge.answer(BASELINE, np.random.default_rng([0, i])) for i in range(200)]
    assert {answer.true_bpb for answer in answers} == {judge.true_value(BASELINE)}
    assert np.std([answer.seen_bpb for answer in answers]) == pytest.approx(0.0005, rel=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"DEPTH": 25}, "DEPTH = 25 is outside the recorded range"),
        ({"DEPTH": 8.5}, "not a whole number"),
        ({"DEPTH": True}, "outside"),
        ({"MATRIX_LR": "fast"}, "outside"),
        ({"WINDOW_PATTERN": "SLLS"}, "never recorded"),
        ({"HEAD_DIM": 96}, "never recorded"),
    ],
)
def test_values_outside_the_recorded_ranges_are_refused(
    judge: Surrogate, change: dict[str, object], words: str
) -> None:
    assert words in judge.space.refuses({**BASELINE, **change})
    assert judge.space.refuses(BASELINE) == ""
    assert "no longer a constant" in judge.space.refuses({k: v for k, v in BASELINE.items() if k != "DEPTH"})


@pytest.mark.parametrize("arm", NUMERIC)
def test_numeric_arms_stay_inside_the_ranges_and_repeat_with_their_seed(judge: Surrogate, arm: str) -> None:
    def walk(seed: int) -> list[dict[str, object]]:
        search = NUMERIC[arm](judge.space, seed)
        settings = [next(search)]
        for i in range(12):
            settings.append(search.send(None if i % 5 == 0 else 1.0 - 0.001 * i))
        return settings

    first = walk(3)
    assert [judge.space.refuses(setting) for setting in first] == [""] * 13
    assert first == walk(3)
    assert first != walk(4)


def test_local_search_keeps_what_looks_better_and_moves_one_to_three_constants(judge: Surrogate) -> None:
    search = NUMERIC["local"](judge.space, 0)
    base = next(search)
    better = search.send(1.0)
    assert 1 <= sum(base[name] != better[name] for name in base) <= 3
    following = search.send(0.9)
    assert sum(better[name] != following[name] for name in base) <= 3
    for _ in range(20):  # worse trials and failures: it stays where it is
        trial = search.send(None)
        assert sum(better[name] != trial[name] for name in base) <= 3


def test_local_critic_runs_what_the_critic_draws_lowest_near_the_incumbent_and_the_critics_favourite(
    judge: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic that likes small warm-ups, with a favourite that is not the incumbent."""
    asked: list[list[dict[str, Any]]] = []

    class Likes(critic.Critic):
        def draw(self, programs: Any, seed: int) -> Any:
            if not self.ready:
                return super().draw(programs, seed)
            asked.append([read_constants(program) for program in programs])
            return np.array([one["WARMDOWN_RATIO"] for one in asked[-1]])

        def predict(self, programs: Any) -> Any:
            values = [read_constants(program)["MATRIX_LR"] for program in programs]
            return np.array(values), np.eye(len(values))

    monkeypatch.setattr(arms, "Critic", Likes)
    search, rng = NUMERIC["local_critic"](judge.space, 0), np.random.default_rng(0)
    trial, told = next(search), list[tuple[float | None, dict[str, Any]]]()
    assert trial == BASELINE
    while len(asked) < 4:
        seen = None if len(told) == 3 else 1.0 + 0.01 * float(rng.random())
        told.append((seen, trial))
        trial = search.send(seen)
    measured = [(value, one) for value, one in told if value is not None]
    best, favourite = (
        min(measured, key=lambda pair: pair[0])[1],
        min(measured, key=lambda pair: pair[1]["MATRIX_LR"])[1],
    )
    assert best != favourite
    pool = asked[0]
    assert len(pool) == arms.POOL
    for parent, part in ((best, pool[::2]), (favourite, pool[1::2])):
        assert all(1 <= sum(one[name] != parent[name] for name in parent) <= 3 for one in part)
    run = [trial] + [search.send(1.0) for _ in range(arms.ROUND - 1)]
    assert run == sorted(pool, key=lambda one: one["WARMDOWN_RATIO"])[: arms.ROUND], "no setting twice"


def test_a_language_arm_runs_the_campaigns_own_parts_and_goes_on_where_it_was_killed(
    judge: Surrogate, tmp_path: Path
) -> None:
    """Twenty simulated minutes with a random model, cut in the middle, equal an arm that was never cut."""

    def arm(folder: Path) -> LanguageArm:
        return LanguageArm(judge, folder, name="rl", seed=1, edits_per_round=2, overrides=TINY)

    whole = arm(tmp_path / "whole").run(0.35)
    arm(tmp_path / "cut").run(0.15)
    resumed = arm(tmp_path / "cut").run(0.35)
    assert [(e.status, e.completion, e.reward) for e in resumed] == [(e.status, e.completion, e.reward) for e in whole]
    assert len(whole) > 3
    assert any(e.extra.get("update") for e in whole)
    assert trace_of(whole, judge)[0][1] == judge.true_value(BASELINE)
    short = arm(tmp_path / "cut").run(0.15)
    assert len(short) < len(whole), "fewer hours are asked for than were run"
    assert [e.completion for e in short] == [e.completion for e in whole[: len(short)]]
    assert sum(e.costs["simulated"] for e in short[:-1]) < 0.15 * 3600 <= sum(e.costs["simulated"] for e in short)
    assert {e.status for e in whole} <= {
        Status.KEPT,
        Status.DISCARDED,
        Status.CRASHED,
        Status.REJECTED,
        Status.DUPLICATE,
    }


def test_a_filter_runs_the_first_new_and_legal_samples_and_learns_nothing(judge: Surrogate, tmp_path: Path) -> None:
    def refused(arm: str) -> tuple[int, int]:
        many = LanguageArm(judge, tmp_path / arm, name=arm, seed=1, edits_per_round=2, overrides=TINY).run(0.5)
        assert not any(one.extra.get("update") for one in many)
        assert {one.parent_index for one in many[1:]} <= {one.index for one in many if one.status is Status.KEPT}
        return sum(one.status in (Status.REJECTED, Status.DUPLICATE) for one in many), len(many)

    (filtered, of), (bare, among) = refused("filter"), refused("greedy")
    assert filtered / of < bare / among


def test_what_is_learned_shows_by_quarter_of_the_proposals() -> None:
    values = [0.99, 0.98, None, 0.98, 0.97, None, None, 0.98, 0.98]
    many = [SimpleNamespace(reward=float(i), value=value) for i, value in enumerate(values)]
    assert replay.by_quarter(many) == {  # type: ignore[arg-type]
        "reward_by_quarter": [1.5, 3.5, 5.5, 7.5],
        "trained_by_quarter": [0.5, 1.0, 0.0, 1.0],
    }
    assert replay.by_quarter(many[:1]) == {"reward_by_quarter": [], "trained_by_quarter": []}  # type: ignore[arg-type]


def test_an_arm_killed_inside_a_round_ends_as_if_it_had_not_been(
    judge: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of four, updates of three: killed in the first round, and after the second update was saved but not committed.

    By turns the incumbent and the critic's favourite are edited, so what waits in a round has parents of its own.
    """
    monkeypatch.setattr(critic, "LEAST", 2)
    monkeypatch.setattr(choice, "favourite", lambda memory, campaign, _critic: memory.experiment(campaign.id, 1))

    def run(folder: str) -> list[Experiment]:
        overrides = {**TINY, "policy.batch_edits": 3, "policy.parents": "by_turns", "policy.prompt_tokens": 1800}
        return LanguageArm(judge, tmp_path / folder, "rl", seed=3, edits_per_round=4, overrides=overrides).run(0.7)

    def seen(experiments: list[Experiment]) -> list[object]:
        updates = [{**one.extra.get("update", {}), "update_seconds": 0} for one in experiments]
        names = ("index", "parent_index", "status", "value", "completion", "reward", "prompt")
        told = [[getattr(one, name) for name in names] for one in experiments]
        return list(zip(told, updates, strict=True))

    whole = run("whole")
    assert len(whole) > 8, "two rounds have ended"
    assert len({one.parent_index for one in whole[5:9]}) == 2, "the second round has two parents"
    commit = Memory.commit_iteration
    for dies_at in (3, 6):
        with monkeypatch.context() as patched:

            def dies(memory: Memory, experiment: Experiment, state: State, at: int = dies_at) -> None:
                if experiment.index == at:
                    raise KeyboardInterrupt
                commit(memory, experiment, state)

            patched.setattr(Memory, "commit_iteration", dies)
            with pytest.raises(KeyboardInterrupt):
                run("killed")
    assert seen(run("killed")) == seen(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overrides": {**TINY, "policy.choices": 2}}, r"policy.choices \(8 there, 2 here\)"),
        ({"edits_per_round": 3}, r"replay.edits_per_round \(2 there, 3 here\)"),
        ({"surrogate": "other trials"}, r"replay.trials \("),
    ],
)
def test_a_run_of_other_settings_or_trials_is_refused(
    judge: Surrogate, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    known: dict[str, Any] = {"surrogate": judge, "name": "rl", "seed": 0, "edits_per_round": 2, "overrides": TINY}
    LanguageArm(folder=tmp_path, **known).run(0.01)
    if "surrogate" in change:
        other = copy.copy(judge)
        other.digest = "0" * 64
        change = {"surrogate": other}
    with pytest.raises(ConfigError, match=rf"{words}.*another folder with --work, or remove"):
        LanguageArm(folder=tmp_path, **known | change).run(0.01)


def test_what_ended_after_the_hours_counts_nowhere() -> None:
    late = {"arm": "rl", "seed": 0, "hours": 24.0, "best": 0.97, "trace": [[0.1, 0.99], [23.0, 0.98], [24.2, 0.97]]}
    other = {"arm": "local", "seed": 0, "hours": 24.0, "best": 0.985, "trace": [[7.9, 0.99], [8.1, 0.985]]}
    entries = [in_time(late), in_time(other)]
    assert [(one["best_8h"], one["best_24h"], one["best"]) for one in entries] == [
        (0.99, 0.98, 0.98),
        (0.99, 0.985, 0.985),
    ]
    assert entries[0]["trace"][-1] == (23.0, 0.98)
    gap = paired(entries, ["rl", "local"])["rl - local"]
    assert gap["mean"] == pytest.approx(-0.005)
    assert gap["marks"]["best_8h"]["mean"] == 0
    assert gap["marks"]["best_24h"]["mean"] == pytest.approx(-0.005)
    assert entries[0]["best_mean"] == pytest.approx((22.9 * 0.99 + 1.0 * 0.98) / 23.9), (
        "each value for as long as it stood"
    )
    assert entries[1]["best_mean"] == pytest.approx((0.2 * 0.99 + 15.9 * 0.985) / 16.1)
    assert in_time(late | {"hours": 1.0})["best_mean"] == 0.99
    with pytest.raises(ValueError, match="give more --hours"):
        in_time({**late, "hours": 0.05})


def test_ppo_is_held_against_the_same_policy_frozen_and_rl_against_both() -> None:
    entries = [
        in_time({"arm": arm, "seed": 0, "hours": 8.0, "trace": [[1.0, value]]})
        for arm, value in (("greedy", 0.98), ("ppo", 0.97), ("rl", 0.96))
    ]
    assert list(paired(entries, ["greedy", "ppo", "rl"])) == ["rl - greedy", "rl - ppo", "ppo - greedy"]


def test_arms_that_were_made_with_different_code_are_not_compared_without_a_word() -> None:
    def entry(arm: str, code: str | None) -> dict[str, object]:
        known = {} if code is None else {"made_with": code}
        return {"arm": arm, "seed": 0, "hours": 8.0, "best": 0.98, "trace": [[1.0, 0.98]]} | known

    def mixed(*codes: str | None) -> bool:
        entries = [entry(arm, code) for arm, code in zip(("rl", "greedy"), codes, strict=True)]
        return bool(paired(entries, ["rl", "greedy"])["rl - greedy"]["mixed"])

    assert not mixed("a float32", "a float32")
    assert mixed("a float32", "b float32")
    assert mixed("a float32", None)
    assert mixed(None, None)
    assert "mixed" not in paired([entry("rl", "a"), entry("local", None)], ["rl", "local"])["rl - local"]


def test_an_adapter_that_is_trained_anew_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("replay", TINY)
    known = made_with(config)
    assert made_with(config) == known
    shutil.copytree(ROOT / "bench" / "replay" / "adapter", tmp_path / "adapter")
    monkeypatch.setattr(language, "ROOT", tmp_path)
    monkeypatch.setattr(language, "CODE", ("adapter",))
    before = made_with(config)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert made_with(config) != before


def test_a_comment_is_no_other_code_and_a_statement_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "ROOT", tmp_path)
    monkeypatch.setattr(language, "CODE", ("code.py",))

    def made(source: str) -> str:
        (tmp_path / "code.py").write_text(source)
        return made_with(config)

    config = load_config("replay", TINY)
    assert made('"""Says."""\nx = 1  # one\n') == made('"""Says otherwise."""\n\nx = 1\n')
    assert made("x = 1\n") != made("x = 2\n")


def test_a_result_that_is_read_though_the_code_has_changed_says_so(
    trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--trials", str(trials), "--results", str(tmp_path / "r.json"), "--work", str(tmp_path), "--hours", "0.2"]
    tiny = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    arguments = [*where, *tiny, "--arms", "greedy", "--seeds", "1", "--edits-per-round", "1"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "read, not run" not in capsys.readouterr().err
    results = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps([results[0] | {"made_with": "abc float32"}]))
    assert main(arguments) == 0
    assert "greedy seed 0: read, not run: made with abc float32, now it is" in capsys.readouterr().err
    local = [*where, "--arms", "local", "--seeds", "1"]
    assert main(local) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    capsys.readouterr()
    assert main(local) == 0
    assert "read, not run" not in capsys.readouterr().err
    (tmp_path / "r.json").write_text(json.dumps([results[-1] | {"made_with": "abc"}]))
    assert main(local) == 0
    assert "local seed 0: read, not run: made with abc, now it is" in capsys.readouterr().err


def test_an_arm_that_goes_on_with_other_code_says_both(
    judge: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(code: str, hours: float) -> str:
        monkeypatch.setattr(language, "made_with", lambda _config: code)
        one = LanguageArm(judge, tmp_path, "greedy", seed=0, edits_per_round=1, overrides=TINY)
        one.run(hours)
        return one.made_with

    assert made("a float32", 0.1) == "a float32"
    assert made("a float32", 0.2) == "a float32"
    assert made("b float32", 0.3) == "a float32 then b float32"


def test_the_recorded_results_are_read_with_the_values_that_they_were_published_with() -> None:
    recorded = json.loads((ROOT / "bench" / "results" / "replay.json").read_text())
    assert len(recorded) >= 50
    for entry in recorded:
        read = in_time(entry)
        assert (read["best_8h"], read["best_24h"]) == (entry["best_8h"], entry["best_24h"])
        assert read["best"] == entry["best_24h"], "24 hours are what was recorded"


def test_an_entry_without_its_trials_was_recorded_on_those_of_then(
    judge: Surrogate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {
        "arm": "local",
        "seed": 0,
        "hours": 8.0,
        "settings": {},
        "experiments": 7,
        "failed": 0,
        "trace": [[0.1, 0.5]],
    }
    monkeypatch.setattr(replay, "Surrogate", lambda _path: judge)
    (tmp_path / "replay.json").write_text(json.dumps([old]))
    (tmp_path / "trials").touch()
    command = ["--trials", str(tmp_path / "trials"), "--arms", "local", "--seeds", "1", "--hours", "8"]
    command += ["--results", str(tmp_path / "replay.json"), "--json"]
    monkeypatch.setitem(replay.BEFORE, "trials", judge.digest)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["arms"]["local"]["best_8h"] == [0.5]
    monkeypatch.setitem(replay.BEFORE, "trials", "of another file")
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["arms"]["local"]["best_8h"] != [0.5]
    assert json.loads((tmp_path / "replay.json").read_text())[0] == old


def test_an_edit_without_effect_is_priced_and_one_out_of_range_is_refused(judge: Surrogate, tmp_path: Path) -> None:
    arm = LanguageArm(judge, tmp_path, name="greedy", seed=0, edits_per_round=1, overrides=TINY)
    source = (ROOT / "bench" / "replay" / "target.py").read_text(encoding="utf-8")
    void = arm._answer(read_constants(source.replace("answered", "told")), 1)
    assert void.training_s == judge.trained_wall_s
    assert void.score is not None
    out = arm._answer(read_constants(write_constants(source, {"DEPTH": 99})), 2)
    assert (out.cause, out.score) == (Cause.PROTOCOL, None)
    assert out.training_s < 60


def test_results_are_appended_and_read_again(trials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--trials", str(trials), "--arms", "random,local", "--seeds", "2", "--hours", "8"]
    command += ["--results", str(tmp_path / "replay.json"), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first["arms"]["local"]["best_8h"]) == 2
    stored = (tmp_path / "replay.json").read_text()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "replay.json").read_text() == stored


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trials", str(tmp_path / "none.parquet")]) == 1
    assert "no recorded trials at" in capsys.readouterr().err


def test_the_memory_tells_the_policy_nothing_of_the_truth(judge: Surrogate, tmp_path: Path) -> None:
    """What the prompt is built from holds seen values only."""
    arm = LanguageArm(judge, tmp_path, name="greedy", seed=2, edits_per_round=1, overrides=TINY)
    arm.run(0.15)
    truth = judge.true_value(BASELINE)
    for one in Memory(tmp_path / "memory.duckdb").experiments("replay-greedy-2"):
        assert one.value != truth
        assert str(truth) not in json.dumps(one.to_json())
