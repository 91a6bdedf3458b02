"""Does a problem's folder keep the contract? Every answer is a sentence that names the field and the remedy.

check(folder, data_dir, say)    the command: all of it, a trial run included; returns an exit code
complaints(description)         what can be known without running a candidate
get_ready(spec, data_dir, say)  the same, and the data prepared: what a campaign asks before it begins
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Callable
from pathlib import Path

from frozen_env import frozen_code, manifest
from frozen_env.contract import Cause, FrozenEnvError, ManifestError, ProblemError, ResearchError, RunResult
from frozen_env.description import Description, look, read
from frozen_env.files import join
from frozen_env.frozen_code import CodeFailed
from frozen_env.problems import HELD_OUT, SERVED, TRAINING, make, prepare, prepared_folder, verify
from frozen_env.runtime import hiding, sandbox
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, read_preset

Say = Callable[[str], None]


def check(folder: Path, data_dir: Path, say: Say, *, trial: bool = True) -> int:
    """Say what is wrong with a problem's folder, a sentence each. Return 0 when nothing is, else 1."""
    description, found = look(folder)
    if description is not None and not found:
        say(f"{description.name}: {description.metric}, {description.direction} is better; {_edits(description)}")
        if not description.has_curve:
            say("no run.curve: a run cannot be followed, so none is stopped early")
        found = complaints(description)
    if description is not None and not found and trial:
        found = _trial(description, data_dir, say)
    for sentence in found:
        say(f"- {sentence}")
    if description is None or found:
        say(f"{len(found)} to mend; docs/problems.md explains every field")
        return 1
    say("the contract is kept" if trial else "the contract is kept, as far as can be seen without a trial run")
    return 0


def complaints(description: Description) -> list[str]:
    """Return what is wrong with a described folder, as far as can be known without running a candidate."""
    found = [*_sources(description), *_manifest(description), *_hidden(description)]
    if description.way == "command":
        found += _frozen_code(description)
    else:
        found += _served_code(description)
    return found


def get_ready(spec: EnvironmentSpec, data_dir: Path, say: Say) -> None:
    """Find what is wrong with a problem before a campaign begins, and prepare its data where that takes seconds.

    Raises ProblemError with every complaint, ManifestError or DataMissing. What was found in order is not looked at again
    until a frozen file changes.
    """
    description = read(spec.problem)
    if description.way == "command":
        manifest.verify_problem(description)
        seen = prepared_folder(description, data_dir).with_suffix(".checked")
        found = _sources(description) if seen.exists() else complaints(description)
        if found:
            raise ProblemError("\n".join(found))
        prepare(spec, data_dir, say)
        seen.touch()
    verify(spec, data_dir)


def _edits(description: Description) -> str:
    return f"{', '.join(description.files)} may be edited"


def _sources(description: Description) -> list[str]:
    found = []
    for name, text in description.sources().items():
        try:
            defined = {
                node.name
                for node in ast.parse(text).body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            }
        except (SyntaxError, ValueError) as error:
            found.append(f"edit.files: {name} does not compile ({error}); mend it")
            continue
        if len(description.files) == 1:
            found += [
                f"edit.keep names {one}, which {name} does not define at top level; define it or remove it from edit.keep"
                for one in description.keep
                if one not in defined
            ]
    try:
        join(description.sources())
    except ValueError as error:
        found.append(f"edit.files: {error}")
    return found


def _manifest(description: Description) -> list[str]:
    try:
        manifest.verify_problem(description)
    except ManifestError as error:
        return [str(error)]
    return []


def _hidden(description: Description) -> list[str]:
    return [
        f"run.hidden names {name!r}, but no installed package holds it; correct the path (as in sklearn/datasets/data)"
        for name in hiding.missing(description.hidden, sandbox.readable_paths())
    ]


def _served_code(description: Description) -> list[str]:
    try:
        module = frozen_code.load(description.folder / description.code)
    except CodeFailed as error:
        return [str(error)]
    return [
        f"{description.code} defines no {name}(); a served problem needs {', '.join(SERVED)}"
        for name in SERVED
        if not callable(getattr(module, name, None))
    ]


def _frozen_code(description: Description) -> list[str]:
    """Call each function of the frozen code as a campaign would, and look for what changes between calls."""
    code = description.folder / description.code
    try:
        values = [
            value for _ in range(2) for value in frozen_code.call(code, "sample", [], description.limit_s)["values"]
        ]
        if len(set(values)) > 1:
            shown = " and ".join(f"{value:.6g}" for value in sorted(set(values))[:2])
            return [
                f"score() in {code.name} changes between calls: the same predictions got {shown}; take chance, time and "
                "stored state out of it"
            ]
        with tempfile.TemporaryDirectory() as scratch:
            first, second = Path(scratch) / "1", Path(scratch) / "2"
            make(description, first)
            make(description, second)
            return _compare(first, second, code.name)
    except FrozenEnvError as error:
        return [str(error)]


def _compare(first: Path, second: Path, code: str) -> list[str]:
    found = []
    for part, function in ((TRAINING, "training_data"), (HELD_OUT, "held_out")):
        if frozen_code.checksums(first / part) != frozen_code.checksums(second / part):
            found.append(
                f"{function}() in {code} wrote other files the second time; fix its seed, and write no time stamps"
            )
    shared = set(frozen_code.checksums(first / TRAINING).values()) & set(
        frozen_code.checksums(first / HELD_OUT).values()
    )
    if shared:
        found.append(
            f"training_data() and held_out() in {code} wrote the same file; held-out inputs must not be trained on"
        )
    return found


# --- a trial run ------------------------------------------------------------------------------------------------------


def _trial(description: Description, data_dir: Path, say: Say) -> list[str]:
    """Train and score the files as they are, as experiment 0 does."""
    try:
        spec = description.spec()
        if description.preset_only:
            preset = read_preset("embedded")["environment"]
            spec = EnvironmentSpec.from_json(preset | {"problem": spec.problem})
        prepare(spec, data_dir, say)
        verify(spec, data_dir)
        say(f"trial run: training takes {spec.budget_s:g} s at most")
        with (
            tempfile.TemporaryDirectory() as scratch,
            held_for(spec.device) as gpu,
            Host(spec, data_dir, Path(scratch) / "host.log", gpu) as host,
        ):
            result = host.run(description.first_source(), seed=0, place=Path(scratch) / "run")
    except ResearchError as error:
        return [f"the trial run could not be made: {error}"]
    return _judge(result, description, spec, say)


def _judge(result: RunResult, description: Description, spec: EnvironmentSpec, say: Say) -> list[str]:
    if result.score is None:
        return [f"the trial run gave no score ({result.cause.value}): {result.reason}; {_remedy(result.cause)}"]
    say(
        f"trial run: {description.metric} {result.score.value:.6g}, {result.training_s:.1f} of {spec.budget_s:g} s of "
        f"training, {result.scoring_s:.1f} s of scoring, {len(result.reports)} losses seen"
    )
    if description.curve and not result.reports:
        return ["run.curve matched no line of the output; correct it, or remove it: there is no early stopping then"]
    return []


def _remedy(cause: Cause) -> str:
    remedies = {
        Cause.NO_SUBMISSION: "have run.train write the file that run.model names, before environment.budget_s is used",
        Cause.BAD_SUBMISSION: "have run.train write run.model as an ordinary file",
        Cause.OVERRUN: "have the script end when ARL_BUDGET_S is used, or at SIGTERM",
        Cause.SILENCE: "no budget is lost to a script that prints nothing",
        Cause.BAD_PREDICTIONS: "have run.predict write what score() takes to the file that run.predictions names",
        Cause.BAD_MODEL: "run it by hand in a copy of the folder, on inputs of your own",
        Cause.OUT_OF_MEMORY: "raise environment.memory_limit_mb",
        Cause.PROCESSES: "raise environment.process_limit",
        Cause.DISK: "raise environment.scratch_limit_mb",
        Cause.SLOW_MODEL: "make predicting faster, or raise environment.score_limit_s",
    }
    return remedies.get(cause, "mend the files, or the limits in [environment]")
