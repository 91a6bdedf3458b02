"""From a problem's folder to the problem that a host runs. The built-in problem takes the same way as a user's.

    prepare(spec, data_dir, say)    make what training and scoring need, once
    verify(spec, data_dir)          is it there, and as it was prepared?
    open_problem(spec, data_dir)    for the host

A folder with way = "served" defines functions of these three names in its frozen code, in torch (runtime/problem.py). One
with way = "command" defines what frozen_code.py says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frozen_env import frozen_code, manifest
from frozen_env.contract import DataMissing, Direction, ManifestError, ProblemError
from frozen_env.description import MANIFEST, Description, read
from frozen_env.frozen_code import CodeFailed
from frozen_env.runtime.launch import Commands
from frozen_env.runtime.problem import Problem
from frozen_env.spec import EnvironmentSpec

Say = Callable[[str], None]
SERVED = ("prepare", "verify", "open_problem")
TRAINING, HELD_OUT = "training", "held_out"


def prepare(spec: EnvironmentSpec, data_dir: Path, say: Say = lambda _: None) -> None:
    """Prepare a problem's data; does nothing when it is there. Raises FrozenEnvError naming the remedy."""
    problem = read(spec.problem)
    if problem.way == "served":
        _served(problem, "prepare")(spec, data_dir, say)
        return
    folder = prepared_folder(problem, data_dir)
    if folder.is_dir():
        return
    say(f"preparing the data of {problem.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        part = Path(scratch) / "part"
        part.mkdir()
        make(problem, part)
        (part / MANIFEST).write_text(
            "".join(f"{digest}  {name}\n" for name, digest in frozen_code.checksums(part).items()), encoding="utf-8"
        )
        if not folder.is_dir():
            os.replace(part, folder)
        else:
            shutil.rmtree(part)


def make(problem: Description, folder: Path) -> None:
    """Have the frozen code write training data and held-out inputs into a folder. Raises ProblemError."""
    try:
        frozen_code.call(problem.folder / problem.code, "prepare", [str(folder)], problem.limit_s)
    except CodeFailed as error:
        raise ProblemError(str(error)) from error
    for part, function in ((TRAINING, "training_data"), (HELD_OUT, "held_out")):
        if not any(path.is_file() for path in (folder / part).rglob("*")):
            raise ProblemError(
                f"{function}() in {problem.code} wrote no file into the folder that it was given; write one"
            )


def verify(spec: EnvironmentSpec, data_dir: Path) -> None:
    """Check a problem's folder and prepared data. Raises ProblemError, ManifestError or DataMissing."""
    problem = read(spec.problem)
    manifest.verify_problem(problem)
    if problem.way == "served":
        _served(problem, "verify")(spec, data_dir)
    else:
        CommandProblem(problem, data_dir)


def open_problem(spec: EnvironmentSpec, data_dir: Path) -> tuple[Problem, str]:
    """Return the problem and the digest of its frozen part and data. Raises as verify()."""
    problem = read(spec.problem)
    pinned = manifest.verify_problem(problem)
    served = problem.way == "served"
    opened: Problem = _served(problem, "open_problem")(spec, data_dir) if served else CommandProblem(problem, data_dir)
    if (opened.metric, opened.direction) != (problem.metric, problem.direction):
        raise ProblemError(
            f"{problem.code} measures {opened.metric} ({opened.direction}), problem.toml says {problem.metric} "
            f"({problem.direction}); make them agree"
        )
    return opened, hashlib.sha256(f"{pinned} {opened.digest}".encode()).hexdigest()


def _served(problem: Description, name: str) -> Callable[..., Any]:
    """A function of the frozen code of a served problem, which runs here: it serves batches and measures answers."""
    try:
        function = getattr(frozen_code.load(problem.folder / problem.code), name, None)
    except CodeFailed as error:
        raise ProblemError(str(error)) from error
    if not callable(function):
        raise ProblemError(f"{problem.code} defines no {name}(); a served problem needs {', '.join(SERVED)}")
    found: Callable[..., Any] = function
    return found


def prepared_folder(problem: Description, data_dir: Path) -> Path:
    """Where prepared data lie: named by the frozen files, so that changed code never meets the data of the old."""
    digest = hashlib.sha256(manifest.render(problem.folder, problem.frozen_files()).encode()).hexdigest()
    return data_dir / "problem" / f"{problem.name}-{digest[:12]}"


class CommandProblem:
    """A problem whose commands are run. Raises DataMissing or ManifestError when its data are not as prepared."""

    def __init__(self, problem: Description, data_dir: Path) -> None:
        self.metric: str = problem.metric
        self.direction: Direction = problem.direction
        self._problem = problem
        folder = prepared_folder(problem, data_dir)
        again = f"run: python -m flows.setup --problem {problem.folder}"
        if not (folder / MANIFEST).is_file():
            raise DataMissing(f"the data of {problem.name} are not prepared in {folder}; {again}")
        pinned = (folder / MANIFEST).read_text(encoding="utf-8")
        found = {name: digest for name, digest in frozen_code.checksums(folder).items() if name != MANIFEST}
        if "".join(f"{digest}  {name}\n" for name, digest in found.items()) != pinned:
            raise ManifestError(f"{folder} changed since it was prepared; delete it and {again}")
        self.digest = hashlib.sha256(pinned.encode()).hexdigest()
        self.commands: Commands = Commands(
            train=problem.train,
            predict=problem.predict,
            model=problem.model,
            predictions=problem.predictions,
            curve=problem.curve,
            given={name: str(problem.folder / name) for name in problem.given},
            readable=problem.readable,
            hidden=problem.hidden,
            training_folder=str(folder / TRAINING),
            held_out_folder=str(folder / HELD_OUT),
        )

    def measure(self, predictions: Path) -> float:
        """Return the metric of a file of predictions, by the frozen code in a process of its own. Raises CodeFailed."""
        return frozen_code.measure(self._problem.folder / self._problem.code, predictions, self._problem.limit_s)
