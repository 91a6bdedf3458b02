"""Edits that reach for more than the text of one file are refused by name; a plain `git apply` would do what they ask."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from arl_core.edit import DEFAULT_RULES, apply_completion, apply_diff
from arl_core.errors import EditRejected

SOURCE = "import torch\n\nWIDTH = 64\n\n\ndef build_model():\n    return torch.nn.Linear(WIDTH, WIDTH)\n"
HEAD = "diff --git a/target/train.py b/target/train.py\n"
FILES = "--- a/target/train.py\n+++ b/target/train.py\n"
HUNK = "@@ -3,1 +3,1 @@\n-WIDTH = 64\n+WIDTH = 96\n"
GOOD = HEAD + FILES + HUNK
MEGABYTE = "x" * (1 << 20)


def writes(path: str, to: str = "") -> str:
    return f"diff --git a/{to or path} b/{to or path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+stolen\n"


def inserts(text: str) -> str:
    return HEAD + FILES + f"@@ -3,1 +3,2 @@\n WIDTH = 64\n+{text}\n"


@dataclass(frozen=True)
class EditAttack:
    """`does` says, of the folder in which git applied the edit, whether it did what its name says."""

    name: str
    diff: str
    code: str
    does: Callable[[Path], bool]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def train(folder: Path) -> Path:
    return folder / "repo" / "target" / "train.py"


def holds(text: str) -> Callable[[Path], bool]:
    return lambda folder: text.encode() in train(folder).read_bytes()


EDITS = [
    EditAttack(
        "touches a second file",
        GOOD
        + "diff --git a/other.py b/other.py\n--- a/other.py\n+++ b/other.py\n@@ -1 +1 @@\n-safe = True\n+safe = False\n",
        "other_file",
        lambda folder: "False" in (folder / "repo" / "other.py").read_text(),
    ),
    EditAttack(
        "touches the same file twice",
        GOOD + GOOD.replace("64", "96").replace("+WIDTH = 96", "+WIDTH = 8"),
        "many_files",
        holds("= 8"),
    ),
    EditAttack(
        "writes beside the repository with ../", writes("../stolen"), "outside_path", lambda f: (f / "stolen").exists()
    ),
    EditAttack(
        "writes to an absolute path",
        writes("/ABSOLUTE/stolen").replace("b//", "/"),
        "other_file",
        lambda f: (f / "stolen").exists(),
    ),
    EditAttack(
        "replaces the file by a binary one",
        HEAD + "index 1862db15a6b1a42ea4177d851c6714f4c8df5e4c..8352675d67aed6625ece79af41c27fdb4ee2e867 100644\n"
        "GIT binary patch\n"
        "literal 3\n"
        "KcmZQzWC8#H2LJ>B\n"
        "\n"
        "literal 87\n"
        "zcmd1IEyyn_Q7FkTO3vWo3iosg@ldc;Ff-xe;z~(PQ%EY!%t?vQ%}+_q(a^NwQUHRY\n"
        "e)RNMoJctgxygWUh%)HdZA`P%s9R)C@$prwQL>hAd\n"
        "\n",
        "binary",
        lambda folder: train(folder).read_bytes() == b"\0\1\2",
    ),
    EditAttack(
        "renames the file",
        "diff --git a/target/train.py b/target/other.py\nsimilarity index 100%\n"
        "rename from target/train.py\nrename to target/other.py\n",
        "other_file",
        lambda folder: not train(folder).exists(),
    ),
    EditAttack(
        "makes the file executable",
        HEAD + "old mode 100644\nnew mode 100755\n" + FILES + HUNK,
        "mode_change",
        lambda folder: bool(train(folder).stat().st_mode & 0o100),
    ),
    EditAttack(
        "turns the file into a link",
        writes("target/link").replace("100644", "120000"),
        "other_file",
        lambda f: (f / "repo/target/link").is_symlink(),
    ),
    EditAttack(
        "deletes the file",
        HEAD
        + "deleted file mode 100644\n--- a/target/train.py\n+++ /dev/null\n@@ -1,7 +0,0 @@\n"
        + "".join(f"-{line}\n" for line in SOURCE.splitlines()),
        "deleted_file",
        lambda f: not train(f).exists(),
    ),
    EditAttack("hides a NUL byte", inserts("A = 1  # \0"), "control_character", holds("\0")),
    EditAttack(
        "hides what a line says with a bidirectional mark",
        inserts("A = 1  # \u202e"),
        "control_character",
        holds("\u202e"),
    ),
    EditAttack("writes a megabyte in one line", inserts(f"A = '{MEGABYTE}'"), "too_large", holds(MEGABYTE)),
    EditAttack("writes a long line", inserts(f"A = '{MEGABYTE[:5000]}'"), "long_line", holds(MEGABYTE[:5000])),
    EditAttack("imports what it may not", inserts("import socket"), "forbidden_import", holds("import socket")),
    EditAttack(
        "imports it by another name", inserts("socket = __import__('socket')"), "forbidden_import", holds("__import__")
    ),
    EditAttack(
        "leaves nothing of the file",
        HEAD + FILES + "@@ -1,7 +0,0 @@\n" + "".join(f"-{line}\n" for line in SOURCE.splitlines()),
        "empty_result",
        lambda f: train(f).read_text() == "",
    ),
    EditAttack(
        "removes build_model",
        HEAD + FILES + "@@ -6,2 +6,1 @@\n-def build_model():\n-    return torch.nn.Linear(WIDTH, WIDTH)\n+A = 1\n",
        "missing_definition",
        lambda f: b"build_model" not in train(f).read_bytes(),
    ),
    EditAttack("does not compile", inserts("def ("), "syntax", holds("def (")),
]


@pytest.mark.parametrize("attack", EDITS, ids=str)
def test_a_hostile_edit_is_refused_in_one_line(attack: EditAttack) -> None:
    with pytest.raises(EditRejected) as refused:
        apply_diff(SOURCE, attack.diff)
    assert refused.value.code == attack.code, refused.value
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("attack", EDITS, ids=str)
def test_git_would_do_what_it_asks(attack: EditAttack, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    train(tmp_path).parent.mkdir(parents=True)
    train(tmp_path).write_text(SOURCE)
    (repo / "other.py").write_text("safe = True\n")
    diff = attack.diff.replace("a//ABSOLUTE", str(tmp_path)).replace("/ABSOLUTE", str(tmp_path))
    strip = "-p0" if "/ABSOLUTE" in attack.diff else "-p1"
    command = ["git", "apply", "--unsafe-paths", "--unidiff-zero", "--inaccurate-eof", strip, "-"]
    done = subprocess.run(command, cwd=repo, input=diff.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert attack.does(tmp_path)


@pytest.mark.parametrize("diff", ["", "@@\n", HEAD + FILES, HEAD + FILES + "@@ -3,1 +3,1 @@\n", "Sorry, no."])
def test_an_edit_without_a_hunk_is_refused(diff: str) -> None:
    with pytest.raises(EditRejected) as refused:
        apply_diff(SOURCE, diff)
    assert refused.value.code in ("no_hunks", "empty_hunk", "stray_lines")


def test_windows_line_ends_never_reach_the_file() -> None:
    edit = apply_diff(SOURCE, GOOD.replace("\n", "\r\n"))
    assert "\r" not in edit.source
    assert edit.repairs == ("crlf",)
    with pytest.raises(EditRejected, match="character"):
        apply_diff(SOURCE, inserts("A = 1  # one\rB = 2"))


def test_a_hostile_edit_by_blocks_is_refused_too() -> None:
    block = "<<<<<<< SEARCH\nWIDTH = 64\n=======\n{}\n>>>>>>> REPLACE\n"
    assert apply_completion(SOURCE, block.format("WIDTH = 96")).source == SOURCE.replace("64", "96")
    for line, code in [
        ("import socket", "forbidden_import"),
        ("A = '\x1b[2J'", "control_character"),
        ("WIDTH = 64", "no_change"),
    ]:
        with pytest.raises(EditRejected) as refused:
            apply_completion(SOURCE, block.format(line), DEFAULT_RULES)
        assert refused.value.code == code
