"""The replay bench's results: what counts, what is compared with what, and which code made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from arl_core.config import load_config
from arl_core.edit import read_constants, write_constants
from arl_core.memory import Memory
from bench.replay import __main__ as replay
from bench.replay import language
from bench.replay.__main__ import in_time, main, paired
from bench.replay.language import ROOT, LanguageArm, made_with
from bench.replay.space import BASELINE
from bench.replay.surrogate import Surrogate
from frozen_env.contract import Cause
from tests.bench.conftest import TINY


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
