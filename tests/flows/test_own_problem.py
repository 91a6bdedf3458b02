"""Problems that users bring, through the loop itself: the worked example, its agenda, its metric and direction."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arl_core.config import load_config
from arl_core.policy.endpoint import system_words
from arl_core.policy.levers import levers_of
from arl_core.policy.synthesis import Told, synthesise
from flows import confirm, iteration, slots, warm_start
from flows.opening import open_session, preflight, read_source
from flows.start import plan
from frozen_env import manifest
from frozen_env.contract import Status
from frozen_env.description import read
from frozen_env.fetch import data_dir
from frozen_env.files import join, split_marked
from frozen_env.problems import prepare
from frozen_env.runtime.supervisor import Host

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TASKS = ("commit", "patch", "make_prompt", "propose", "propose_many", "make_reward", "track", "checkpoint", "update")


@pytest.fixture
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks as the plain functions that they wrap: this is about the problem, not about the server."""
    for module in (iteration, confirm, slots):
        for name in (*TASKS, "train", "commit_repeat"):
            if hasattr(getattr(module, name, None), "fn"):
                monkeypatch.setattr(module, name, getattr(module, name).fn)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, whose agenda may be changed, with data of its own."""
    monkeypatch.setenv("ARL_DATA", str(tmp_path / "data"))
    folder = tmp_path / "digits"
    shutil.copytree(EXAMPLES / "digits", folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_worked_example_is_researched(digits: Path, tmp_path: Path, without_prefect: None) -> None:
    settings = {
        "environment.problem": str(digits),
        "environment.budget_s": 120.0,  # a busy machine may use it; the steps end it
        "environment.silence_s": 120.0,
        "target.MAX_STEPS": 1500,
        "memory": str(tmp_path / "mlruns" / "memory.duckdb"),
        "policy.proposer": "random",
        "confirm.enabled": False,
        "tracking": False,
    }
    start = plan("embedded", 1, None, settings, fresh=False)
    preflight(start)
    with open_session(start) as session:
        seed = iteration.run_seed(session)
        (digits / "AGENDA.md").write_text("Try a wider network first.\n", encoding="utf-8")
        edited = iteration.run_iteration(session, 1)
        best = session.memory.incumbent(session.campaign.id)
    assert session.campaign.id.startswith("digits-")
    assert (session.campaign.problem, session.campaign.metric, session.campaign.direction) == (
        "digits",
        "accuracy",
        "higher",
    )
    assert (seed.status, seed.metric, seed.direction) == (Status.KEPT, "accuracy", "higher")
    assert seed.value is not None
    assert 0.5 < seed.value <= 1.0, "ten classes: chance is 0.1"
    assert seed.reports
    assert list(split_marked(seed.source) or ()) == ["train.py", "model.py"]
    assert "Try a wider network first." in edited.prompt, "a changed agenda takes effect at the next iteration"
    assert "## Source of digits" in edited.prompt
    assert "higher is better" in edited.prompt
    assert edited.diff.startswith(("--- a/digits/train.py", "--- a/digits/model.py"))
    assert edited.reward is not None
    assert best is not None
    assert best.value == max(one.value for one in (seed, edited) if one.value is not None)


def test_a_campaign_starts_from_the_files_as_they_are(digits: Path) -> None:
    (digits / "model.py").write_text("HIDDEN = 8\n", encoding="utf-8")
    source = read_source(load_config("embedded", {"environment.problem": str(digits)}))
    assert (split_marked(source) or {})["model.py"] == "HIDDEN = 8\n"


def test_a_model_behind_an_endpoint_is_told_of_this_problem_and_no_other() -> None:
    words = system_words(read("examples/digits"))
    assert "digits/train.py, digits/model.py" in words
    assert "classifier of handwritten digits" in words
    assert "language model" not in words
    assert "one Python file, target/train.py: it trains a language model" in system_words(read("target"))


@pytest.mark.parametrize("name", ["digits", "wrapped_gpt"])
def test_the_warm_start_teaches_the_files_of_a_problem(name: str) -> None:
    problem = read(EXAMPLES / name)
    spec, source = warm_start.start_state("embedded", problem)
    assert spec.problem == f"examples/{name}"
    assert source == join(problem.sources())
    told = Told("Try.", problem.path, problem.metric, problem.direction, levers_of(problem))
    examples = synthesise(source, 4, 3, told, len, 9000, seed=0)
    edits = [blocks for example in examples for blocks in example.edits]
    assert len(edits) >= 8
    assert all(search in examples[0].source or len(blocks) > 1 for blocks in edits[:3] for search, _ in blocks)
    assert f"## Source of {problem.path}" in examples[0].prompt
    assert problem.metric in examples[0].prompt


@pytest.mark.parametrize("name", ["digits", "wrapped_gpt"])
def test_the_examples_are_pinned(name: str) -> None:
    assert len(manifest.verify_problem(read(EXAMPLES / name))) == 64


@pytest.mark.slow
def test_a_script_that_was_wrapped_is_followed_and_scored(tmp_path: Path) -> None:
    problem = read(EXAMPLES / "wrapped_gpt")
    prepare(problem.spec(), data_dir())
    with Host(problem.spec(), data_dir(), tmp_path / "host.log") as host:
        result = host.run(join(problem.sources()), seed=0, place=tmp_path / "run")
    assert result.score is not None, result
    assert 0.0 < result.score.value < 7.0, "a uniform guess has 7 bits"
    assert len(result.reports) > 2
    assert result.reports[-1].lr is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what trainers of other libraries deprecate is not ours to mend
def test_an_adapter_is_taught_on_the_files_of_a_problem(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "adapter"), "--problem", "examples/digits", "--model", "tiny-random"]
    few = ["--states", "2", "--edits", "2", "--epochs", "1", "--no-survival", "--prompt-tokens", "600"]
    assert warm_start.main([*words, *few]) == 0
    card = (tmp_path / "adapter" / "DATA_CARD.md").read_text(encoding="utf-8")
    assert "--problem examples/digits" in card
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
