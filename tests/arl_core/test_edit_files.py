"""An edit of several files: one text, one diff, each path on the allow-list."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from arl_core.edit import (
    Rules,
    apply_completion,
    apply_diff,
    apply_exactly,
    canonical_diff,
    levers,
    named_path,
    summarise,
)
from arl_core.errors import EditRejected
from arl_core.policy.searchable import searchable_runs
from arl_core.prompt import PromptInput, build_prompt, excerpt
from arl_core.records import source_hash
from frozen_env.files import join, mark, split, split_marked

MODEL = "import math\n\nWIDTH = 64  # units\n\n\ndef build():\n    return math.sqrt(WIDTH)\n"
TRAIN = "from model import build\n\nRATE = 0.1  # step\n\n\ndef main():\n    return build() * RATE\n"
FILES = {"train.py": TRAIN, "net/model.py": MODEL}
SOURCE = join(FILES)
RULES = Rules(("math",), path="digits", must_define=("build", "main"))
BLOCK = "<<<<<<< SEARCH\n{}\n=======\n{}\n>>>>>>> REPLACE\n"


def code_of(apply, text: str, rules: Rules = RULES) -> str:
    with pytest.raises(EditRejected) as caught:
        apply(SOURCE, text, rules)
    return caught.value.code


def test_files_joined_are_files_again() -> None:
    assert split(SOURCE, list(FILES)) == FILES
    assert split_marked(SOURCE) == FILES
    assert split_marked(TRAIN) is None
    assert join({"train.py": TRAIN}) == TRAIN, "one file is its own text"
    with pytest.raises(ValueError, match="in this order"):
        split(SOURCE, ["net/model.py", "train.py"])
    with pytest.raises(ValueError, match="change that line"):
        join({"a.py": "A = 1\n", "b.py": f"{mark('c.py')}\nB = 1\n"})


def test_one_completion_edits_two_files_and_becomes_one_diff_that_git_applies(tmp_path: Path) -> None:
    text = BLOCK.format("RATE = 0.1  # step", "RATE = 0.2  # step") + BLOCK.format(
        "WIDTH = 64  # units", "WIDTH = 32  # units"
    )
    edit = apply_completion(SOURCE, text, RULES)
    changed = {
        name: one.replace("RATE = 0.1", "RATE = 0.2").replace("WIDTH = 64", "WIDTH = 32") for name, one in FILES.items()
    }
    assert split_marked(edit.source) == changed
    assert edit.diff.count("--- a/digits/") == 2
    assert apply_exactly(SOURCE, edit.diff) == edit.source
    for name, one in FILES.items():
        (tmp_path / "digits" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "digits" / name).write_text(one)
    subprocess.run(["git", "apply", "-"], input=edit.diff, text=True, cwd=tmp_path, check=True)
    assert {name: (tmp_path / "digits" / name).read_text() for name in FILES} == changed
    assert levers(SOURCE, edit.diff) == ("RATE", "WIDTH")
    assert levers(SOURCE, "") == ()
    assert named_path(edit.diff, edit.source) == "digits"
    assert "RATE: 0.1 → 0.2" in summarise(SOURCE, edit.source)


def test_a_diff_from_outside_may_touch_each_file_once() -> None:
    edited = SOURCE.replace("RATE = 0.1", "RATE = 0.3").replace("WIDTH = 64", "WIDTH = 16")
    diff = canonical_diff(SOURCE, edited, "digits")
    assert apply_diff(SOURCE, diff, RULES).source == edited
    assert apply_diff(SOURCE, diff, RULES).repairs == ()
    after = split_marked(edited) or {}
    as_git = "".join(
        f"diff --git a/digits/{name} b/digits/{name}\nindex 1..2 100644\n"
        + canonical_diff(FILES[name], after[name], f"digits/{name}")
        for name in FILES
    )
    assert apply_diff(SOURCE, as_git, RULES).source == edited
    assert (
        code_of(apply_diff, diff + canonical_diff(MODEL, MODEL.replace("64", "8"), "digits/net/model.py"))
        == "many_files"
    )


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("digits/frozen.py", "other_file"),
        ("digits/../net/model.py", "other_file"),
        ("/digits/net/model.py", "other_file"),
        ("digits/model.py", "other_file"),
    ],
)
def test_a_path_that_is_not_on_the_list_is_refused(path: str, code: str) -> None:
    assert code_of(apply_diff, canonical_diff(MODEL, MODEL.replace("64", "8"), path)) == code


def test_a_diff_that_names_no_file_is_refused() -> None:
    hunks = canonical_diff(MODEL, MODEL.replace("64", "8"), "x").split("\n", 2)[2]
    assert code_of(apply_diff, hunks) == "other_file"


def test_the_lines_between_files_stay() -> None:
    line = mark("net/model.py")
    assert code_of(apply_completion, BLOCK.format(line, "# gone")) == "file_marks"
    assert (
        code_of(apply_completion, BLOCK.format("RATE = 0.1  # step", f"{mark('evil.py')}\nRATE = 0.2")) == "file_marks"
    )
    assert all(line not in run.text for run in searchable_runs(SOURCE, 3))
    assert any("WIDTH" in run.text for run in searchable_runs(SOURCE, 3))


def test_each_file_obeys_the_rules_by_itself() -> None:
    assert code_of(apply_completion, BLOCK.format("RATE = 0.1  # step", "import socket")) == "forbidden_import"
    assert code_of(apply_completion, BLOCK.format("RATE = 0.1  # step", "RATE = (")) == "syntax"
    assert code_of(apply_completion, BLOCK.format("def build():", "def built():")) == "missing_definition"
    # what one file imports already is no leave for the other
    strict = Rules((), path="digits", must_define=())
    assert code_of(apply_completion, BLOCK.format("RATE = 0.1  # step", "import math"), strict) == "forbidden_import"


def test_code_that_moves_between_files_is_another_program() -> None:
    moved = join({"train.py": TRAIN + "A = 1\n", "net/model.py": MODEL})
    other = join({"train.py": TRAIN, "net/model.py": "A = 1\n" + MODEL})
    assert source_hash(moved) != source_hash(other)
    assert source_hash(SOURCE) == source_hash(SOURCE.replace("# units", "# of width"))


def test_the_prompt_names_the_folder_and_shows_where_each_file_begins() -> None:
    given = PromptInput("Try.", SOURCE, "accuracy", "higher", None, [], [], path="digits")
    text = build_prompt(given, lambda words: len(words.split()), 500).text
    assert "## Source of digits\n" in text
    assert "raises the metric" in text
    cut = excerpt(SOURCE, lambda words: len(words.split()), 42, 1)
    assert mark("net/model.py") in cut
