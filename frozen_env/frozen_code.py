"""The frozen code of a problem whose commands are run: called in a process of its own, which holds no candidate code.

The code (frozen.py, beside problem.toml) defines

    training_data(folder)       write the files that training may read
    held_out(folder)            write the inputs that a trained candidate answers: no answers among them
    score(predictions)          return the metric, a number
    sample_predictions()        return predictions of the right form, of whatever quality, so that score() can be checked

`predictions` is what the file of predictions holds: a numpy array (.npy, never pickled), a dict of arrays (.npz), parsed
JSON (.json), else text. A call that raises, hangs or returns what it must not is a CodeFailed whose message is a sentence.

Who wrote the predictions had read the held-out inputs, and a candidate's reasons reach the policy. So what goes wrong with
a candidate's predictions is told without any text that came from them, as far as it can be known (CodeFailed.told).
"""

from __future__ import annotations

import importlib.util
import json
import math
import numbers
import os
import signal
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from frozen_env.contract import FrozenEnvError
from frozen_env.fetch import sha256_file

REQUIRED = ("training_data", "held_out", "score", "sample_predictions")
ROOT = Path(__file__).resolve().parents[1]
ANSWER_CHARS = 1000
UNPACKED_BYTES = 2**30  # of an .npz, which may be much smaller itself
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME")


class CodeFailed(FrozenEnvError):
    """A call of the frozen code went wrong. The message says which, how, and what to do.

    `told` is the message for those who may not see what was in the predictions.
    """

    def __init__(self, message: str, told: str = "") -> None:
        super().__init__(message)
        self.told = told or message


# --- the caller's side ------------------------------------------------------------------------------------------------


def call(code: Path, action: str, words: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Run one action of main() in a fresh process and return its answer. Raises CodeFailed."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "frozen_env.frozen_code", str(write), action, str(code), *words]
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with open(read, "rb") as answers:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                pass_fds=(write,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.close(write)
        try:
            _, errors = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: what it started ends with it
            process.communicate()
            function = {"prepare": "training_data() or held_out()"}.get(action, "score()")
            raise CodeFailed(
                f"{function} in {code.name} took more than {limit_s:g} s; make it faster or raise frozen.limit_s"
            ) from None
        text = answers.read(1 << 20)
    if not text:
        lines = [] if action == "score" else errors.decode("utf-8", "replace").strip().splitlines()
        raise CodeFailed(
            f"{code.name} ended without an answer: {lines[-1][:300] if lines else 'no output'}; run it by hand"
        )
    answer: dict[str, Any] = json.loads(text)
    if "failed" in answer:
        raise CodeFailed(answer["failed"])
    return answer


def measure(code: Path, predictions: Path, limit_s: float) -> float:
    """Return score() of a file of predictions. Raises CodeFailed."""
    return float(call(code, "score", [str(predictions)], limit_s)["value"])


def checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


# --- the process that runs the code -----------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    """Entry point: ANSWER_FD ACTION CODE [ARGUMENT...]. Actions: prepare FOLDER, score FILE, sample (score it twice)."""
    answer_fd, action, code, *rest = words
    try:
        module = load(Path(code))
        if action == "prepare":
            answer = _prepare(module, Path(rest[0]))
        elif action == "score":
            answer = {"value": _score(module, read_predictions(Path(rest[0])))}
        else:
            answer = _sample(module)
    except CodeFailed as error:
        answer = {"failed": error.told if action == "score" else str(error)}
    with open(int(answer_fd), "w", encoding="utf-8") as answers:
        json.dump(answer, answers)
    return 0


def load(code: Path) -> ModuleType:
    """Import the frozen code; modules beside it can be imported by it. Raises CodeFailed."""
    sys.path.insert(0, str(code.parent))
    found = importlib.util.spec_from_file_location(f"frozen_code_of_{code.parent.name}", code)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        raise CodeFailed(f"{code.name} cannot be imported: {_words(error)}; mend it") from error
    return module


def _call(module: ModuleType, name: str, *arguments: Any) -> Any:
    function = getattr(module, name, None)
    file = Path(str(module.__file__)).name
    if not callable(function):
        raise CodeFailed(f"{file} defines no {name}(); write it (docs/problems.md)")
    try:
        return function(*arguments)
    except BaseException as error:
        told = f"{name}() in {file} raised {type(error).__name__}; its text is withheld, as it may hold held-out inputs"
        if name == "score" and isinstance(error, ValueError):
            refused = f"score() in {file} refused the predictions: {str(error)[:ANSWER_CHARS]}"
            raise CodeFailed(refused, refused if _is_raised_in(error, module) else told) from error
        raise CodeFailed(f"{name}() in {file} raised {_words(error)}; mend it", told) from error


def _is_raised_in(error: BaseException, module: ModuleType) -> bool:
    """Say whether a raise statement of the module made this error. float("a b") makes one too, and quotes what it got."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename == module.__file__ and "raise " in (last.line or "")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:ANSWER_CHARS]}".strip().removesuffix(":")


def _prepare(module: ModuleType, folder: Path) -> dict[str, Any]:
    for name, part in (("training_data", "training"), ("held_out", "held_out")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        _call(module, name, folder / part)
    return {"done": True}


def _score(module: ModuleType, predictions: Any) -> float:
    value = _call(module, "score", predictions)
    file = Path(str(module.__file__)).name
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        kind = "a string" if isinstance(value, str) else f"a {type(value).__name__}"
        what, remedy = f"score() in {file} returned {kind}", "return the metric as a float"
        raise CodeFailed(f"{what}, {str(value)[:60]!r}; {remedy}", f"{what}; {remedy}")
    if not math.isfinite(value):
        raise CodeFailed(
            f"score() in {file} returned {float(value)}; return a finite number, or raise ValueError with a reason"
        )
    return float(value)


def _sample(module: ModuleType) -> dict[str, Any]:
    """Score the sample twice: the same predictions have the same score."""
    for name in REQUIRED:
        if not callable(getattr(module, name, None)):
            raise CodeFailed(f"{Path(str(module.__file__)).name} defines no {name}(); write it (docs/problems.md)")
    predictions = _call(module, "sample_predictions")
    return {"values": [_score(module, predictions), _score(module, predictions)]}


def read_predictions(path: Path) -> Any:
    """Return what a file of predictions holds. It is a candidate's: nothing of it is run. Raises CodeFailed."""
    try:
        if path.suffix == ".npz":
            _check_unpacked_size(path)
        if path.suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return dict(found) if path.suffix == ".npz" else found
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else text
    except (ValueError, OSError, EOFError, KeyError, RecursionError, MemoryError, zipfile.BadZipFile) as error:
        what = f"the predictions cannot be read as {path.suffix or 'text'}: "
        raise CodeFailed(what + _words(error), what + type(error).__name__) from error


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size_bytes = sum(info.file_size for info in archive.infolist())
    if size_bytes > UNPACKED_BYTES:
        raise CodeFailed(f"the predictions are too large unpacked, {UNPACKED_BYTES} bytes are allowed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
