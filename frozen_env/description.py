"""What a problem is, as its folder's problem.toml says it: the same description for the built-in problem and a user's.

    read(folder)         the description; raises ProblemError that says what is missing
    look(folder)         the description, if it can be made, and every complaint as a sentence

Every sentence names the field and the remedy. docs/problems.md explains each field.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from frozen_env.constants import write_constants
from frozen_env.contract import Direction, ProblemError
from frozen_env.fields import Fields
from frozen_env.files import join
from frozen_env.spec import EnvironmentSpec, read_preset

ROOT = Path(__file__).resolve().parents[1]
FILE = "problem.toml"
LEVERS = "levers.toml"  # templates of edits (arl_core/policy/levers.py): they steer proposals, not results
BUILT_IN = "target"  # the folder of the problem that is meant where none is named
MANIFEST = "MANIFEST.sha256"
NAME = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")
METRIC = re.compile(r"^[A-Za-z][A-Za-z0-9_]{0,39}$")
# Names under which an experiment records other numbers.
RESERVED = (
    "value",
    "reward",
    "confirmations",
    "tokens",
    "peak_memory_mb",
    "policy_step",
    "train_loss",
    "lr",
    "forecast",
)
# Constants of the text problem; a folder whose commands are run has no use for them.
SERVED_ONLY = ("corpus", "corpus_path", "vocab_size", "seq_len", "held_out_rows", "probe_rows")
KNOWN = {
    "": ("name", "about", "metric", "direction", "gain", "edit", "run", "frozen", "environment", "target", "campaign"),
    "edit": ("files", "imports", "keep"),
    "run": ("way", "train", "model", "predict", "predictions", "given", "curve", "readable", "hidden"),
    "frozen": ("code", "limit_s"),
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """One problem. Paths of files are relative to `folder`; commands are lists of words."""

    folder: Path
    name: str
    about: str  # one sentence for whoever proposes edits: what the files do and what scores them
    metric: str
    direction: Direction
    gain: float  # worth having, in the metric's units: the scale of the reward
    files: tuple[str, ...]  # what may be edited; the first is the script
    imports: tuple[str, ...] = ()  # modules that an edit may import, besides those that are imported already
    keep: tuple[str, ...] = ()  # functions and classes that must stay defined
    way: Literal["command", "served"] = "command"
    train: tuple[str, ...] = ()
    model: str = ""  # the file that training leaves behind
    predict: tuple[str, ...] = ()
    predictions: str = ""
    given: tuple[str, ...] = ()  # files that commands may read and nobody edits
    curve: str = ""  # regular expression on the script's output; '' means that there is no curve
    readable: tuple[str, ...] = ()  # absolute paths of programs and libraries that commands need
    hidden: tuple[str, ...] = ()  # what must not be read of the installed packages
    code: str = "frozen.py"
    limit_s: float = 60.0  # longest time for one call of the frozen code
    environment: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)  # constants written into the campaign's own copy
    campaign: Mapping[str, Any] = field(default_factory=dict)  # settings of a campaign by their dotted names

    @property
    def path(self) -> str:
        """How prompts and diffs name the script, or, where there are several files, their folder."""
        return f"{self.folder.name}/{self.files[0]}" if len(self.files) == 1 else self.folder.name

    @property
    def has_curve(self) -> bool:
        """Whether a run can be followed, and so stopped early."""
        return self.way == "served" or bool(self.curve)

    @property
    def source(self) -> str:
        """Where its editable files are, as a setting: the one file, or the folder that holds them."""
        return f"{shown(self.folder)}/{self.files[0]}" if len(self.files) == 1 else shown(self.folder)

    @property
    def preset_only(self) -> bool:
        """Whether the environment comes from a preset alone, as that of the built-in problem."""
        return not self.environment

    @property
    def agenda(self) -> Path:
        return self.folder / "AGENDA.md"

    def sources(self) -> dict[str, str]:
        """Return the editable files' texts by name. Raises ProblemError when one cannot be read."""
        return {name: _read_text(self.folder / name, "edit.files") for name in self.files}

    def first_source(self, preset: str = "embedded") -> str:
        """Return the editable files as one text, as experiment 0 trains them: the constants of [target] written in.

        Where the environment comes from a preset, so do the constants. Raises FrozenEnvError, or ValueError when the files
        do not go together.
        """
        constants = read_preset(preset)["target"] if self.preset_only else self.target
        return write_constants(join(self.sources()), constants)

    def frozen_files(self) -> list[Path]:
        """Return everything in the folder that must not change during a campaign: all but editable files and notes."""
        notes = (MANIFEST, LEVERS, "AGENDA.md", "README.md")
        return sorted(
            path
            for path in self.folder.rglob("*")
            if path.is_file()
            and (name := path.relative_to(self.folder).as_posix()) not in (*self.files, *notes)
            and not any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)
        )

    def spec(self, changes: Mapping[str, Any] | None = None) -> EnvironmentSpec:
        """Return the environment that [environment] describes, with changes. Raises FrozenEnvError or ValueError."""
        return EnvironmentSpec.from_json(
            {"name": self.name, **self.environment, "problem": shown(self.folder), **(changes or {})}
        )


def locate(folder: str | Path) -> Path:
    """Return a problem's folder; a relative one is looked for in the project's root."""
    return Path(ROOT, Path(folder).expanduser()).resolve()


def shown(folder: Path) -> str:
    """Return a folder as it is recorded: relative inside the project, so that it means the same on every node."""
    return folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)


def read(folder: str | Path) -> Description:
    """Return the description in a folder. Raises ProblemError with every complaint about it."""
    description, complaints = look(folder)
    if description is None or complaints:
        raise ProblemError("\n".join(complaints))
    return description


def look(folder: str | Path) -> tuple[Description | None, list[str]]:
    """Return the description of a folder, None when it is too broken for one, and what is wrong with it, as sentences."""
    place = locate(folder)
    path = place / FILE
    if not place.is_dir():
        return None, [f"there is no folder {place}; name the folder that holds {FILE}"]
    if not path.is_file():
        return None, [f"{path} is missing; it says what may be edited and how it is run (docs/problems.md)"]
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return None, [f"{path} is not TOML: {error}; mend that line"]
    return _Reader(place, tables).read()


@functools.cache
def built_in() -> Description:
    """Return the description of the built-in problem, which stands for the defaults elsewhere."""
    return read(BUILT_IN)


class _Reader(Fields):
    """Takes a description out of parsed TOML and notes every complaint on the way."""

    def __init__(self, folder: Path, tables: dict[str, Any]) -> None:
        super().__init__(FILE, tables)
        self.folder = folder

    def read(self) -> tuple[Description | None, list[str]]:
        self._unknown()
        way = self.choice("run.way", ("command", "served"), "command")
        commanded = way == "command"
        found: dict[str, Any] = {
            "folder": self.folder,
            "name": self.pattern("name", NAME, "small letters, digits, - and _, such as my_problem"),
            "about": self.text("about", "one sentence on what the files do and what scores them"),
            "metric": self._metric(),
            "direction": self.choice("direction", ("lower", "higher"), None),
            "gain": self.positive("gain", "the gain worth having, in the metric's units, such as 0.01"),
            "files": self._files("edit.files", 'the list of files that may be edited, such as ["train.py"]'),
            "imports": self.words("edit.imports"),
            "keep": self.words("edit.keep"),
            "way": way,
            "code": self.text("frozen.code", "", "frozen.py"),
            "limit_s": self.positive("frozen.limit_s", "seconds", 60.0),
            "environment": self.table("environment"),
            "target": self.table("target"),
            "campaign": self.table("campaign"),
        }
        if commanded:
            found |= {
                "train": self.command("run.train", "python train.py"),
                "model": self._inside("run.model", "the file that training leaves behind, such as model.npz"),
                "predict": self.command("run.predict", "python predict.py"),
                "predictions": self._inside("run.predictions", "the file of predictions, such as predictions.npy"),
                "given": self._files("run.given", "", ()),
                "curve": self.regex("run.curve"),
                "readable": self.words("run.readable"),
                "hidden": self.words("run.hidden"),
            }
        self._check_files(found)
        self._check_environment(found, commanded)
        if any(value is None for value in found.values()):
            return None, self.complaints
        return Description(**found), self.complaints

    # --- fields of this file -------------------------------------------------------------------------------------
    def _unknown(self) -> None:
        for table, known in KNOWN.items():
            found = self.tables.get(table, {}) if table else self.tables
            if not isinstance(found, dict):
                self.complain(table, f"must be a table: write [{table}] and its fields below")
                continue
            for key in found:
                if key not in known:
                    full = f"{table}.{key}" if table else key
                    self.complain(full, f"is not a field; known here: {', '.join(known)}")

    def _metric(self) -> str | None:
        value = self.pattern("metric", METRIC, "letters, digits and _, such as accuracy")
        if value in RESERVED:
            self.complain(
                "metric",
                f"is {value!r}, which every experiment records already; choose another, such as held_out_{value}",
            )
            return None
        return value

    # --- files ---------------------------------------------------------------------------------------------------------
    def _inside(self, name: str, what: str) -> str | None:
        value = self.text(name, what)
        return value if value is not None and self._is_inside(name, value) else None

    def _is_inside(self, name: str, value: str) -> bool:
        parts = PurePosixPath(value)
        if (
            parts.is_absolute()
            or ".." in parts.parts
            or not (self.folder / value).resolve().is_relative_to(self.folder)
        ):
            self.complain(name, f"names {value!r}, which lies outside the folder; use a path inside {self.folder}")
            return False
        if str(parts) != value or "\\" in value or any(ord(char) < 33 for char in value):
            self.complain(name, f"names {value!r}; write it as a plain relative path without spaces, such as a/b.py")
            return False
        return True

    def _files(self, name: str, what: str, default: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
        if self.get(name) is None and default is None:
            self.complain(name, f"is missing; give {what}")
            return None
        words = self.words(name)
        if words is None:
            return None
        if not words and default is None:
            self.complain(name, f"is empty; give {what}")
            return None
        fine = [self._is_inside(name, word) and self._exists(name, word) for word in words]
        if len(set(words)) < len(words):
            self.complain(name, f"names a file twice: {', '.join(words)}; name each once")
            return None
        return words if all(fine) else None

    def _exists(self, name: str, word: str) -> bool:
        if (self.folder / word).is_file():
            return True
        self.complain(name, f"names {word!r}, but {self.folder / word} is no file; create it or correct the name")
        return False

    def _check_files(self, found: dict[str, Any]) -> None:
        files, given, code = found["files"] or (), found.get("given") or (), found["code"]
        for name in files:
            if not name.endswith(".py"):
                self.complain("edit.files", f"names {name!r}; editable files are Python: name *.py files")
            if name in given:
                self.complain("run.given", f"names {name!r}, which is in edit.files too; name it in one of them")
        for field_name in ("model", "predictions"):
            if found.get(field_name) in (*files, *given, "data", "inputs"):
                taken = (
                    f"is {found[field_name]!r}, which is there before the command runs; write to a file of another name"
                )
                self.complain(f"run.{field_name}", taken)
        if code is None or not self._is_inside("frozen.code", code):
            return
        if code in files:
            self.complain(
                "edit.files", f"names {code!r}, the frozen code: a candidate could edit its own score; remove it"
            )
        if code in given:
            self.complain(
                "run.given", f"names {code!r}, the frozen code: a candidate could read the answers; remove it"
            )
        if not (self.folder / code).is_file():
            self.complain(
                "frozen.code", f"is {code!r}, but {self.folder / code} is no file; write it (docs/problems.md)"
            )
        if not (self.folder / "AGENDA.md").is_file():
            self.complaints.append(
                f"{self.folder / 'AGENDA.md'} is missing; write in Markdown what to try, a line is enough"
            )

    def _check_environment(self, found: dict[str, Any], commanded: bool) -> None:
        environment = found["environment"] or {}
        known = {f.name: f for f in fields(EnvironmentSpec) if f.name not in ("name", "problem")}
        before = len(self.complaints)
        for key in environment:
            if key not in known or (commanded and key in SERVED_ONLY):
                usable = [k for k in known if not commanded or k not in SERVED_ONLY]
                self.complain(f"environment.{key}", f"is not a field; known here: {', '.join(usable)}")
        if commanded and "budget_s" not in environment:
            self.complain("environment.budget_s", "is missing; give the seconds that one training may take")
        if len(self.complaints) > before:
            return
        try:
            EnvironmentSpec(name="x", **environment)
        except (TypeError, ValueError) as error:
            self.complaints.append(f"{FILE}: {error}; correct it in [environment]")


def _read_text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"cannot read {path}: {error}; correct {name} in {FILE}, or the file") from error
