"""What problem.toml may say, and the sentence for everything that it may not: each names the field and the remedy."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from arl_core.config import load_config
from arl_core.errors import ConfigError
from frozen_env.__main__ import _source
from frozen_env.constants import read_constants
from frozen_env.contract import FrozenEnvError, ProblemError
from frozen_env.description import built_in, look, read
from frozen_env.spec import read_preset
from tests.problem_folder import write_problem


def test_a_problem_that_keeps_the_contract_has_no_complaints(tmp_path: Path) -> None:
    description, complaints = look(write_problem(tmp_path / "guess"))
    assert complaints == []
    assert description is not None
    assert description.train == ("python", "train.py")
    assert description.path == "guess/train.py"
    assert description.has_curve
    assert {path.name for path in description.frozen_files()} == {"frozen.py", "predict.py", "problem.toml"}


def test_experiment_zero_trains_the_files_with_the_constants_of_target(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess", {"target": {"GUESS": 0.25}})
    (folder / "train.py").write_text("GUESS = 3  # of the mean\n", encoding="utf-8")
    assert read(folder).first_source() == "GUESS = 0.25  # of the mean\n"


def test_experiment_zero_of_the_built_in_problem_has_the_constants_of_the_preset() -> None:
    raw, small = built_in().sources()["train.py"], built_in().first_source("embedded")
    constants = read_preset("embedded")["target"]
    assert constants
    assert {name: read_constants(small)[name] for name in constants} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in constants.items()
    }
    assert read_constants(raw) != read_constants(small)


def test_one_experiment_by_hand_takes_the_target_as_experiment_zero_and_any_other_file_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(source=Path("target/train.py"), preset="embedded")
    assert _source(options, built_in()) == built_in().first_source("embedded")
    assert "preset embedded" in capsys.readouterr().out
    options.source = tmp_path / "candidate.py"
    options.source.write_text(built_in().sources()["train.py"], encoding="utf-8")
    assert _source(options, built_in()) == built_in().sources()["train.py"]
    options.source = tmp_path / "absent.py"
    with pytest.raises(FrozenEnvError, match="no candidate at"):
        _source(options, built_in())


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"metric": None}, "metric is missing", "such as accuracy"),
        ({"metric": 3}, "metric must be text", "such as accuracy"),
        ({"metric": "reward"}, "metric is 'reward', which every experiment records", "held_out_reward"),
        ({"metric": "top 1"}, "metric must be letters", "got 'top 1'"),
        ({"name": "Guess!"}, "name must be small letters", "got 'Guess!'"),
        ({"direction": None}, "direction is missing", '"lower" or "higher"'),
        ({"direction": "down"}, "direction must be", "got 'down'"),
        ({"gain": "a lot"}, "gain must be a positive number", "got 'a lot'"),
        ({"gain": 0}, "gain must be a positive number", "got 0"),
        ({"about": None}, "about is missing", "one sentence"),
        ({"edit.files": None}, "edit.files is missing", '["train.py"]'),
        ({"edit.files": []}, "edit.files is empty", '["train.py"]'),
        ({"edit.files": "train.py"}, "edit.files must be a list", "got 'train.py'"),
        ({"edit.files": ["../train.py"]}, "edit.files names '../train.py', which lies outside", "a path inside"),
        ({"edit.files": ["/etc/passwd"]}, "edit.files names '/etc/passwd', which lies outside", "a path inside"),
        ({"edit.files": ["absent.py"]}, "edit.files names 'absent.py'", "create it or correct the name"),
        ({"edit.files": ["train.py", "train.py"]}, "edit.files names a file twice", "each once"),
        (
            {"edit.files": ["train.py", "frozen.py"]},
            "the frozen code: a candidate could edit its own score",
            "remove it",
        ),
        ({"run.given": ["frozen.py"]}, "the frozen code: a candidate could read the answers", "remove it"),
        ({"run.given": ["train.py"]}, "run.given names 'train.py', which is in edit.files too", "one of them"),
        ({"run.train": None}, "run.train is missing", "python train.py"),
        ({"run.train": "python 'train.py"}, "run.train is no command", "got"),
        ({"run.model": None}, "run.model is missing", "model.npz"),
        ({"run.model": "/tmp/model"}, "run.model names '/tmp/model', which lies outside", "inside"),
        ({"run.model": "predict.py"}, "run.model is 'predict.py', which is there before", "another name"),
        ({"run.predictions": "inputs"}, "run.predictions is 'inputs', which is there before", "another name"),
        ({"run.predictions": "a/../../b.npy"}, "run.predictions names", "inside"),
        ({"run.curve": "loss ("}, "run.curve is no regular expression", "got 'loss ('"),
        ({"run.curve": "loss .*"}, "run.curve has no group", "put parentheses around the loss"),
        ({"run.way": "magic"}, "run.way must be", '"command" or "served"'),
        ({"run.trian": "x"}, "run.trian is not a field", "train, model"),
        ({"metrics": "x"}, "metrics is not a field", "metric"),
        ({"environment.budget_s": None}, "environment.budget_s is missing", "seconds"),
        ({"environment.budget_s": -1.0}, "environment.budget_s must be positive seconds", "correct it"),
        ({"environment.vocab_size": 9}, "environment.vocab_size is not a field", "budget_s"),
        ({"frozen.code": "score.py"}, "frozen.code is 'score.py'", "write it"),
        ({"frozen.limit_s": "long"}, "frozen.limit_s must be a positive number", "got 'long'"),
    ],
)
def test_bad_descriptions_are_sentences(tmp_path: Path, changes: dict[str, object], field: str, remedy: str) -> None:
    _, complaints = look(write_problem(tmp_path / "guess", changes))
    told = [sentence for sentence in complaints if field in sentence]
    assert told, complaints
    assert remedy in told[0]
    with pytest.raises(ProblemError, match=r"problem\.toml"):
        read(tmp_path / "guess")


def test_a_link_that_leaves_the_folder_is_no_editable_file(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess")
    (tmp_path / "elsewhere.py").write_text("A = 1\n")
    (folder / "train.py").unlink()
    (folder / "train.py").symlink_to(tmp_path / "elsewhere.py")
    assert any("lies outside the folder" in sentence for sentence in look(folder)[1])


def test_every_complaint_is_told_at_once(tmp_path: Path) -> None:
    _, complaints = look(write_problem(tmp_path / "guess", {"metric": None, "gain": -1, "run.train": None}))
    assert len(complaints) == 3


@pytest.mark.parametrize(("text", "said"), [("name = ", "is not TOML"), (None, "is missing")])
def test_a_broken_or_missing_file_is_a_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    folder = write_problem(tmp_path / "guess")
    (folder / "problem.toml").unlink()
    if text is not None:
        (folder / "problem.toml").write_text(text)
    description, complaints = look(folder)
    assert description is None
    assert said in complaints[0]


def test_the_built_in_problem_is_a_folder_like_any_other() -> None:
    problem = built_in()
    assert (problem.metric, problem.direction, problem.files) == ("val_bpb", "lower", ("train.py",))
    assert problem.path == "target/train.py"


def test_a_campaign_takes_its_settings_from_the_description(tmp_path: Path) -> None:
    told: dict[str, object] = {"direction": "higher", "edit.imports": ["json"]}
    folder = write_problem(tmp_path / "guess", told | {"campaign": {"confirm.max_reruns": 4}})
    config = load_config("embedded", {"environment.problem": str(folder), "environment.budget_s": 7})
    assert config.environment.budget_s == 7
    assert config.environment.memory_limit_mb == 256
    assert config.reward.scale == 0.1
    assert config.confirm.max_reruns == 4
    assert config.edit.allowed_imports == ("json",)
    assert config.prompt.agenda == str(folder / "AGENDA.md")
    assert config.source == str(folder / "train.py")
    assert config.target == {}, "the built-in problem's constants are not another's"


def test_without_a_curve_no_run_is_stopped_early(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess", {"run.curve": None})
    assert load_config("embedded", {"environment.problem": str(folder)}).stopping.rule == "none"


def test_an_unknown_setting_in_the_description_is_named(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess", {"campaign": {"confirm.max_rerun": 4}})
    with pytest.raises(ConfigError, match=r"confirm\.max_rerun"):
        load_config("embedded", {"environment.problem": str(folder)})
