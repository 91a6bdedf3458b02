"""A user's folder from check to score: the frozen code is looked at before anything is run, candidates are confined."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frozen_env import frozen_code, manifest
from frozen_env.check import check, complaints, get_ready
from frozen_env.contract import Cause, Ending, ManifestError, ProblemError, Progress, RunResult, Verdict
from frozen_env.description import read
from frozen_env.files import join
from frozen_env.problems import prepare, prepared_folder
from frozen_env.runtime.supervisor import Host
from tests.problem_folder import FROZEN, PREDICT, TRAIN, write_problem

Run = Callable[..., RunResult]


# --- what can be known before anything is run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said", "remedy"),
    [
        (
            "return sum(",
            "return 'about 3' or sum(",
            "score() in frozen.py returned a string",
            "return the metric as a float",
        ),
        ("return sum(", "return [](", "score() in frozen.py raised TypeError", "mend it"),
        ("return sum(", "return float('nan') * sum(", "score() in frozen.py returned nan", "a finite number"),
        (
            "return sum(",
            "while True: pass\n    return sum(",
            "score() in frozen.py took more than 8 s",
            "frozen.limit_s",
        ),
        (
            "return sum(",
            "return __import__('time').time() + sum(",
            "score() in frozen.py changes between calls",
            "time",
        ),
        (
            '"0.5"',
            "__import__('os').urandom(4).hex()",
            "training_data() in frozen.py wrote other files",
            "fix its seed",
        ),
        (
            '(folder / "questions.txt").write_text("a b c")',
            "pass",
            "held_out() in frozen.py wrote no file",
            "write one",
        ),
        ("def sample_predictions", "def samples", "defines no sample_predictions()", "write it"),
        ("ANSWERS =", "import absent\nANSWERS =", "frozen.py cannot be imported: ModuleNotFoundError", "mend it"),
        ("ANSWERS =", "raise SystemExit(3)\nANSWERS =", "frozen.py cannot be imported: SystemExit", "mend it"),
    ],
)
def test_bad_frozen_code_is_a_sentence(tmp_path: Path, old: str, new: str, said: str, remedy: str) -> None:
    limit = {"frozen.limit_s": 8.0} if "while" in new else {}
    folder = write_problem(tmp_path / "guess", limit, {"frozen.py": FROZEN.replace(old, new, 1)})
    (found,) = complaints(read(folder))
    assert said in found
    assert remedy in found


def test_a_campaign_is_told_before_it_begins_and_prepares_no_data(tmp_path: Path) -> None:
    folder = write_problem(
        tmp_path / "guess", {}, {"frozen.py": FROZEN.replace("return sum(", "return 'about 3' or sum(")}
    )
    with pytest.raises(ProblemError, match="returned a string"):
        get_ready(read(folder).spec(), tmp_path / "data", print)
    assert not prepared_folder(read(folder), tmp_path / "data").exists()


def test_an_unpinned_and_a_changed_folder_are_refused_with_the_command_that_pins(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess", pinned=False)
    with pytest.raises(ManifestError, match=r"manifest --write --problem"):
        manifest.verify_problem(read(folder))
    manifest.pin_problem(read(folder))
    before = manifest.verify_problem(read(folder))
    (folder / "train.py").write_text("GUESS = 1.0\n")
    (folder / "AGENDA.md").write_text("Something else.\n")
    assert manifest.verify_problem(read(folder)) == before, "editable files and the agenda are the user's to change"
    (folder / "frozen.py").write_text(FROZEN + "\n")
    with pytest.raises(ManifestError, match=r"guess/frozen\.py has changed"):
        manifest.verify_problem(read(folder))


def test_a_name_that_hides_nothing_is_a_sentence(tmp_path: Path) -> None:
    folder = write_problem(tmp_path / "guess", {"run.hidden": ["no_such_package/data"]})
    assert "run.hidden names 'no_such_package/data'" in complaints(read(folder))[0]


def test_predictions_that_would_run_code_are_not_loaded(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "predictions.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(frozen_code.CodeFailed, match="cannot be read"):
        frozen_code.read_predictions(path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(frozen_code.CodeFailed, match="cannot be read"):
        frozen_code.read_predictions(tmp_path / "deep.json")


# --- runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a train.py on the guessing problem under one warm host."""
    top = tmp_path_factory.mktemp("guessing")
    problem = read(write_problem(top / "guess"))
    spec, data = problem.spec(), top / "data"
    prepare(spec, data)
    count = iter(range(1000))
    with Host(spec, data, top / "host.log") as host:

        def run(source: str = TRAIN, **words: object) -> RunResult:
            return host.run(source, seed=3, place=top / f"run{next(count)}", **words)  # type: ignore[arg-type]

        yield run


def test_a_trained_file_is_scored_by_the_frozen_code(guessing: Run) -> None:
    result = guessing()
    assert result.ending is Ending.FINISHED, result
    assert result.score is not None
    assert (result.score.metric, result.score.direction) == ("distance", "lower")
    assert result.score.value == pytest.approx((1.5 + 1.5 + 2.5) / 3)
    assert [(one.step, one.loss) for one in result.reports] == [(0, 2.0), (1, 1.0), (2, pytest.approx(2 / 3))]


def test_a_stopping_verdict_ends_a_run_that_is_followed_by_its_output(guessing: Run) -> None:
    def judge(progress: Progress) -> Verdict:
        return Verdict(progress.reports[-1].loss > 1.0, "hopeless")

    forever = "import time\nwhile True:\n    print('step 1 loss 9.0')\n    time.sleep(0.05)\n"
    result = guessing(forever, judge=judge)
    assert (result.ending, result.cause, result.reason) == (Ending.STOPPED, Cause.VERDICT, "hopeless")


LOOK = """
import os, pathlib
found = []
for place in ({places}):
    try:
        found.append(pathlib.Path(place).read_text()[:20])
    except OSError:
        pass
    try:
        found += os.listdir(place)
    except OSError:
        pass
raise SystemExit(f"found: {{found}}")
"""


def test_training_reaches_neither_held_out_inputs_nor_frozen_code(guessing: Run, tmp_path_factory) -> None:
    top = next(path for path in tmp_path_factory.getbasetemp().glob("guessing*"))
    held_out = next((top / "data").glob("problem/*/held_out"))
    places = [held_out, held_out / "questions.txt", top / "guess", top / "guess" / "frozen.py", "data/../held_out"]
    result = guessing(LOOK.format(places=", ".join(repr(str(place)) for place in places)))
    assert result.cause is Cause.EXCEPTION
    assert "found: []" in result.reason


def test_a_model_that_is_a_link_is_not_followed(guessing: Run, tmp_path_factory) -> None:
    top = next(path for path in tmp_path_factory.getbasetemp().glob("guessing*"))
    result = guessing(f"import os\nos.symlink({str(top / 'guess' / 'frozen.py')!r}, 'model.txt')\n")
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.BAD_SUBMISSION)
    assert "not a regular file" in result.reason


@pytest.mark.parametrize(
    ("source", "cause", "said"),
    [
        ("print('step 1 loss 1.0')\n", Cause.NO_SUBMISSION, "training left no model.txt"),
        ("raise ValueError('no such guess')\n", Cause.EXCEPTION, "no such guess"),
        ("print('step 1 loss nan')\n", Cause.NAN, "the loss was nan"),
        (TRAIN.replace("str(GUESS", "'x' + str(GUESS"), Cause.BAD_MODEL, "run.predict failed"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))\n", Cause.EXCEPTION, "not supported"),
        (TRAIN.replace("str(GUESS", "'nan' or str(GUESS"), Cause.BAD_PREDICTIONS, "returned nan"),
    ],
)
def test_what_goes_wrong_in_a_run_has_a_cause(guessing: Run, source: str, cause: Cause, said: str) -> None:
    result = guessing(source)
    assert result.cause is cause, result
    assert said in result.reason


def test_the_environment_of_a_command_tells_budget_and_seed_and_nothing_else_of_ours(guessing: Run) -> None:
    result = guessing("import json, os\nraise SystemExit(json.dumps(sorted(k for k in os.environ if 'ARL' in k)))\n")
    assert json.loads(result.reason) == ["ARL_BUDGET_S", "ARL_DEVICE", "ARL_ENDS_AT", "ARL_SEED"]


@pytest.fixture
def run_once(tmp_path: Path) -> Run:
    """Runs a changed problem once, under a host of its own."""

    def run(changes: dict[str, object], files: dict[str, str]) -> RunResult:
        problem = read(write_problem(tmp_path / "guess", changes, files))
        prepare(problem.spec(), tmp_path / "data")
        with Host(problem.spec(), tmp_path / "data", tmp_path / "host.log") as host:
            return host.run(join(problem.sources()), seed=0, place=tmp_path / "run")

    return run


STUBBORN = """import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
while True:
    time.sleep(0.1)
"""


def test_nothing_outlives_the_budget(run_once: Run) -> None:
    result = run_once({"environment.budget_s": 6.0, "run.curve": None}, {"train.py": STUBBORN})
    assert result.ending is Ending.TIMED_OUT, result
    assert 6.0 <= result.training_s < 60.0


def test_a_script_without_a_curve_may_be_silent_and_is_ended_by_the_budget_with_what_it_left(run_once: Run) -> None:
    patient = TRAIN.replace("    print", "    0 and print") + "import time\nwhile True:\n    time.sleep(0.05)\n"
    changes = {"run.curve": None, "environment.silence_s": 0.5, "environment.budget_s": 6.0}
    result = run_once(changes, {"train.py": patient})
    assert result.ending is Ending.FINISHED, result
    assert result.score is not None
    assert result.reports == ()


def test_a_script_that_never_reports_is_ended_with_the_remedy(run_once: Run) -> None:
    result = run_once({"environment.silence_s": 1.0}, {"train.py": "import time\nprint('hello')\ntime.sleep(600)\n"})
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.SILENCE)
    assert "run.curve" in result.reason


def test_output_on_which_the_expression_takes_for_ever_ends_the_run(run_once: Run) -> None:
    changes = {"run.curve": r"loss ((a+)+)b"}
    result = run_once(changes, {"train.py": "print('loss ' + 'a' * 60)\nimport time\ntime.sleep(600)\n"})
    assert (result.ending, result.cause) == (Ending.REJECTED, Cause.PROTOCOL)
    assert "run.curve took more than" in result.reason


def test_what_is_hidden_of_a_package_cannot_be_read_and_the_rest_can(run_once: Run) -> None:
    reader = """from importlib.util import find_spec
from pathlib import Path
package = Path(find_spec("sklearn").origin).parent
print(len((package / "__init__.py").read_text()) > 100)
(package / "datasets" / "data" / "digits.csv.gz").read_bytes()
"""
    result = run_once({"run.hidden": ["sklearn/datasets/data"], "run.curve": None}, {"train.py": reader})
    assert result.cause is Cause.EXCEPTION
    assert "PermissionError" in result.reason
    assert "digits.csv.gz" in result.reason
    assert "True" in result.log_tail


def test_predictions_that_make_the_score_hang_cost_the_candidate_and_not_the_host(run_once: Run) -> None:
    slow = FROZEN.replace("    if len(", "    while predictions[0] > 1.0:\n        pass\n    if len(", 1)
    changes: dict[str, object] = {"frozen.limit_s": 5.0, "run.curve": None}
    result = run_once(changes, {"frozen.py": slow})
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.BAD_PREDICTIONS), result
    assert "score() in frozen.py took more than 5 s" in result.reason


def test_several_files_are_run_together(run_once: Run) -> None:
    train = TRAIN.replace("GUESS = 3.0  # the number", "from guess import GUESS")
    changes: dict[str, object] = {"edit.files": ["train.py", "guess.py"], "run.curve": None}
    result = run_once(changes, {"train.py": train, "guess.py": "GUESS = 5.0\n"})
    assert result.score is not None, result
    assert result.score.value == pytest.approx((0.5 + 0.5 + 0.5) / 3)


PREDICTING = {"edit.files": ["train.py", "guess.py"], "run.curve": None}


@pytest.mark.parametrize(
    ("ending", "named"),
    [
        ("raise ValueError(text)", "failed with ValueError"),
        ("raise type(text, (Exception,), {})", "an exit code that is not 0"),
        ("raise SystemExit(text)", "an exit code that is not 0"),
        ("import os; os.kill(os.getpid(), 11)", "failed with SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "failed with signal 40"),
    ],
)
def test_what_a_predictor_says_of_its_inputs_stays_inside(run_once: Run, ending: str, named: str) -> None:
    guess = f"text = open('inputs/questions.txt').read()\nprint('held out:', text)\n{ending}\n"
    result = run_once(PREDICTING, {"guess.py": guess, "predict.py": f"import guess\n{PREDICT}"})
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.BAD_MODEL), result
    assert "a b c" not in result.reason + result.log_tail
    assert "withheld" in result.reason
    assert named in result.reason


QUESTIONS = "open('inputs/questions.txt').read()"


@pytest.mark.parametrize(
    ("predictions", "score", "said"),
    [
        (QUESTIONS, "    float(predictions)\n", "score() in frozen.py raised ValueError"),
        (QUESTIONS, "    {}[predictions]\n", "score() in frozen.py raised KeyError"),
        (QUESTIONS, "    return predictions\n", "score() in frozen.py returned a string; return the metric"),
        ("[1.0]", "", "refused the predictions: 1 predictions, 3 are wanted"),
    ],
)
def test_predictions_tell_nothing_of_the_inputs_by_way_of_the_score(
    run_once: Run, predictions: str, score: str, said: str
) -> None:
    predict = f"import json\njson.dump({predictions}, open('predictions.json', 'w'))\n"
    frozen = FROZEN.replace(
        "    if len(", f"    if isinstance(predictions, list): pass\n    else:\n    {score}    if len(", 1
    )
    result = run_once({"run.curve": None}, {"predict.py": predict, "frozen.py": frozen if score else FROZEN})
    assert result.cause is Cause.BAD_PREDICTIONS, result
    assert said in result.reason
    assert "a b c" not in result.reason + result.log_tail


# --- the command --------------------------------------------------------------------------------------------------------


def test_check_says_that_all_is_well_after_a_trial_run(tmp_path: Path) -> None:
    said: list[str] = []
    assert check(write_problem(tmp_path / "guess"), tmp_path / "data", said.append) == 0
    assert said[-1] == "the contract is kept"
    assert any(line.startswith("trial run: distance 1.83333") for line in said)


def test_check_says_what_a_trial_run_lacked(tmp_path: Path) -> None:
    said: list[str] = []
    folder = write_problem(
        tmp_path / "guess", {"run.curve": "epoch (.*)"}, {"predict.py": PREDICT.replace(".json", ".js")}
    )
    assert check(folder, tmp_path / "data", said.append) == 1
    assert "run.predict wrote no predictions.json" in said[-2]
