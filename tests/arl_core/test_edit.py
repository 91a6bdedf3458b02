"""An edit that comes through either door is exactly what it says; everything else is refused by name."""

from __future__ import annotations

import ast
import random
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from arl_core.config import EditSettings
from arl_core.edit import (
    AppliedEdit,
    Block,
    Rules,
    apply_blocks,
    apply_completion,
    apply_diff,
    apply_exactly,
    canonical_diff,
    parse_blocks,
    summarise,
)
from arl_core.errors import EditRejected
from tests.arl_core.edits import NEW_LR, OLD_LR, SOURCE

EDITED = SOURCE.replace(OLD_LR, NEW_LR).replace("        q = self.q(x)\n", "        q = norm(self.q(x))\n")
DIFF = canonical_diff(SOURCE, EDITED)


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE"


def code_of(door: object, *arguments: object) -> str:
    with pytest.raises(EditRejected) as refusal:
        door(*arguments)  # type: ignore[operator]
    assert str(refusal.value), "a refusal says why"
    assert str(refusal.value).isprintable(), "a refusal may be shown in a table"
    return refusal.value.code


def outcome(door: object, *arguments: object) -> AppliedEdit | EditRejected:
    try:
        return door(*arguments)  # type: ignore[operator, no-any-return]
    except EditRejected as refusal:
        return refusal


# --- the policy's door ------------------------------------------------------------------------------------------------


def test_a_completion_becomes_the_canonical_diff() -> None:
    blocks = block(OLD_LR, NEW_LR) + "\n" + block("        q = self.q(x)", "        q = norm(self.q(x))")
    edit = apply_completion(SOURCE, "Let me think.\n" + blocks)
    assert (edit.source, edit.diff, edit.repairs) == (EDITED, DIFF, ())


def test_blocks_apply_in_turn_and_an_empty_replace_deletes() -> None:
    blocks = parse_blocks(block("a", "b\nc") + "\nand\n" + "<<<<<<< SEARCH\nc\n=======\n>>>>>>> REPLACE\n")
    assert blocks == [Block("a\n", "b\nc\n"), Block("c\n", "")]
    assert apply_blocks("a\nd\n", blocks) == "b\nd\n"
    assert apply_blocks("a", blocks) == "b"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("", "no_blocks"),
        ("MUON_LR = 1", "no_blocks"),
        ("<<<<<<< SEARCH\na\n=======\nb\n", "malformed_blocks"),
        ("<<<<<<< SEARCH\na\n>>>>>>> REPLACE\n", "malformed_blocks"),
        ("=======\n", "malformed_blocks"),
        ("<<<<<<< SEARCH\na\n=======\nb\n=======\nc\n>>>>>>> REPLACE", "malformed_blocks"),
        (" <<<<<<< SEARCH\na\n =======\nb\n >>>>>>> REPLACE", "no_blocks"),
        ("<<<<<<< SEARCH\n=======\nb\n>>>>>>> REPLACE", "empty_search"),
        (block("  ", "b"), "empty_search"),
        (block("MUON_LR = 9", "b"), "search_not_found"),
        (block("MUON_LR", "b"), "search_not_found"),
        (block("    return x\n\n\ndef build_model():\n    return x", "b"), "search_not_found"),
        (block(OLD_LR, OLD_LR), "no_change"),
        (block(OLD_LR, "MUON_LR = ("), "syntax"),
        (block(OLD_LR, "import os"), "forbidden_import"),
        (block("def build_model():", "def make_model():"), "missing_definition"),
        (block(OLD_LR, "MUON_LR = '\x1b[2J'"), "control_character"),
        (block(OLD_LR, "x = 1\n" * 201), "too_many_changes"),
        (block(OLD_LR, "#" * 1002), "long_line"),
        (block(OLD_LR, "# " + "y" * 900 + "\n" + ("# " + "z" * 900 + "\n") * 300), "too_large"),
    ],
)
def test_a_completion_that_is_no_edit_is_refused_by_name(completion: str, code: str) -> None:
    assert code_of(apply_completion, SOURCE, completion) == code


def test_a_search_that_stands_twice_is_refused() -> None:
    assert code_of(apply_blocks, "a\nb\na\n", [Block("a\n", "c\n")]) == "ambiguous_search"


def test_trailing_whitespace_and_windows_line_ends_are_forgiven_and_recorded() -> None:
    assert apply_completion(SOURCE, block(OLD_LR + "  ", NEW_LR)).repairs == ("trailing_whitespace",)
    edit = apply_completion(SOURCE, block(OLD_LR, NEW_LR).replace("\n", "\r\n"))
    assert edit.repairs == ("crlf",)
    assert edit.source == SOURCE.replace(OLD_LR, NEW_LR)


# --- the outsider's door ----------------------------------------------------------------------------------------------


def test_a_canonical_diff_needs_no_repair() -> None:
    edit = apply_diff(SOURCE, DIFF)
    assert (edit.source, edit.diff, edit.repairs) == (EDITED, DIFF, ())


def test_git_applies_the_canonical_diff_too(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for old, new in [(SOURCE, EDITED), (SOURCE, EDITED.rstrip("\n")), (SOURCE.rstrip("\n"), EDITED)]:
        (tmp_path / "target" / "train.py").write_text(old)
        subprocess.run(["git", "apply", "-"], input=canonical_diff(old, new), text=True, cwd=tmp_path, check=True)
        assert (tmp_path / "target" / "train.py").read_text() == new


HEADER = "--- a/target/train.py\n+++ b/target/train.py\n"
BODY = DIFF.removeprefix(HEADER)
GIT = "diff --git a/target/train.py b/target/train.py\nindex 1234567..89abcde 100644\n"


@pytest.mark.parametrize(
    ("diff", "repairs"),
    [
        (GIT + DIFF, ()),
        (BODY, ("missing_header",)),
        (DIFF.replace("\n", "\r\n"), ("crlf",)),
        (f"Here it is:\n```diff\n{DIFF}```\nThis should help, I think.\n", ("talk", "code_fence")),
        (re.sub(r"@@ .* @@", "@@ -1,2 +3,4 @@", DIFF), ("counts", "line_numbers")),
        (re.sub(r"@@ -(\d+),(\d+)", r"@@ -9\1,\2", DIFF), ("line_numbers",)),
        (re.sub(r"@@ .* @@", "@@", DIFF), ("hunk_header",)),
        (re.sub(r"@@ .* @@", "@@ -?,? +?,? @@ def", DIFF), ("hunk_header",)),
        (DIFF.replace("\n \n", "\n\n"), ("lost_space",)),
        (DIFF.replace("\n BETAS", "\nBETAS"), ("lost_space",)),
        (DIFF.replace(" BETAS = (0.8, 0.95)\n", " BETAS = (0.8, 0.95)  \n"), ("trailing_whitespace",)),
        (DIFF.replace("a/target/train.py", "train.py").replace("b/target/train.py", "target/train.py"), ("file_name",)),
        (DIFF.replace("a/target/train.py", "a/target/train.py\t2026-11-23"), ()),
        (DIFF + "-- \n2.43.0\n", ("talk",)),
        (DIFF + "\n\n", ()),
    ],
)
def test_the_form_of_a_diff_is_repaired_and_the_repair_recorded(diff: str, repairs: tuple[str, ...]) -> None:
    edit = apply_diff(SOURCE, diff)
    assert (edit.source, edit.diff) == (EDITED, DIFF)
    assert set(edit.repairs) == set(repairs)


CHANGE = f"@@ -7 +7 @@\n-{OLD_LR}\n+{NEW_LR}\n"


@pytest.mark.parametrize(
    ("diff", "code"),
    [
        ("", "no_hunks"),
        ("please raise the learning rate", "no_hunks"),
        (HEADER, "no_hunks"),
        (HEADER + "@@\n", "empty_hunk"),
        (HEADER + "@@ -1,0 +1,0 @@\n", "empty_hunk"),
        (HEADER + "@@ -7,1 +7,1 @@\n " + OLD_LR + "\n", "empty_hunk"),
        (CHANGE + "that is\n+EXTRA = 1\n", "stray_lines"),
        (HEADER + "@@ -7 +7 @@\n-MUON_LR = 5\n+MUON_LR = 6\n", "context_not_found"),
        (HEADER + "@@\n \n+X = 1\n", "ambiguous_context"),
        (HEADER + "@@\n+X = 1\n", "context_not_found"),
        (HEADER + "@@ -900,0 +901 @@\n+X = 1\n", "context_not_found"),
        (HEADER + CHANGE + CHANGE, "overlap"),
        (HEADER + CHANGE + HEADER + "@@ -8 +8 @@\n-BETAS = (0.8, 0.95)\n+BETAS = 1\n", "many_files"),
        (HEADER + CHANGE + "--- a/setup.py\n+++ b/setup.py\n@@ -1 +1 @@\n-a\n+b\n", "other_file"),
        (HEADER.replace("train", "frozen") + CHANGE, "other_file"),
        ("diff --git a/target/train.py b/frozen_env/clock.py\n" + HEADER + CHANGE, "other_file"),
        (HEADER.replace("b/target/train.py", "b/../target/train.py") + CHANGE, "outside_path"),
        (HEADER.replace("a/target", "a/x/../../target") + CHANGE, "outside_path"),
        (HEADER.replace("a/target/train.py", "/etc/passwd") + CHANGE, "absolute_path"),
        (HEADER.replace("a/target/train.py", "~/x") + CHANGE, "absolute_path"),
        (HEADER.replace("a/target/train.py", "C:\\x") + CHANGE, "absolute_path"),
        (HEADER.replace("a/target/train.py", "/dev/null") + CHANGE, "new_file"),
        (HEADER.replace("b/target/train.py", "/dev/null") + CHANGE, "deleted_file"),
        ("new file mode 100644\n" + HEADER + CHANGE, "new_file"),
        ("deleted file mode 100644\n" + HEADER + CHANGE, "deleted_file"),
        (GIT + "old mode 100644\nnew mode 100755\n" + HEADER + CHANGE, "mode_change"),
        ("similarity index 90%\nrename from target/train.py\nrename to target/x.py\n" + HEADER + CHANGE, "rename"),
        ("copy from target/train.py\n" + HEADER + CHANGE, "rename"),
        (GIT + "Binary files a/target/train.py and b/target/train.py differ\n", "binary"),
        (GIT + "GIT binary patch\nliteral 10\nzcmV\n", "binary"),
        (HEADER + CHANGE.replace("2.8e-3", "'\0'"), "control_character"),
        (HEADER + CHANGE.replace("2.8e-3", "'\u202e'"), "control_character"),
        (HEADER + CHANGE.replace("\n+", "\r+"), "control_character"),
        (HEADER + CHANGE.replace("2.8e-3", "1" * 2**20), "too_large"),
        (HEADER + CHANGE.replace("2.8e-3", "1" * 5000), "long_line"),
        (HEADER + CHANGE.replace("2.8e-3", "2e-3"), "no_change"),
        (HEADER + CHANGE.replace("2.8e-3", "(" * 900), "syntax"),
        (HEADER + CHANGE.replace("MUON_LR = 2.8e-3", "return 3"), "syntax"),
        (HEADER + CHANGE.replace("MUON_LR = 2.8e-3", "import os"), "forbidden_import"),
        (HEADER + CHANGE.replace("MUON_LR = 2.8e-3", "from os import path"), "forbidden_import"),
        (HEADER + CHANGE.replace("MUON_LR = 2.8e-3", "from . import x"), "forbidden_import"),
        (HEADER + CHANGE.replace("2.8e-3", "__import__('os')"), "forbidden_import"),
        (HEADER + "".join(f"-{line}\n" for line in ["@@ -1,33 +0,0 @@", *SOURCE.split("\n")[:-1]])[1:], "empty_result"),
    ],
)
def test_a_diff_that_may_not_be_is_refused_by_name(diff: str, code: str) -> None:
    assert code_of(apply_diff, SOURCE, diff) == code


def test_a_hunk_goes_to_the_place_nearest_to_what_it_says() -> None:
    source = "def build_model(): pass\n" + "x = 1\ny = 2\n" * 10
    diff = HEADER + "@@ -9 +9 @@\n-x = 1\n+x = 3\n"
    edited = apply_diff(source, diff).source.split("\n")
    assert edited.index("x = 3") == 7
    assert apply_diff(source, diff).repairs == ("line_numbers",)


def test_added_lines_alone_stand_after_the_line_that_they_name() -> None:
    edited = apply_diff(SOURCE, HEADER + "@@ -7,0 +8 @@\n+X = 1\n").source.split("\n")
    assert edited[6:8] == [OLD_LR, "X = 1"]


def test_what_the_file_imports_already_an_edit_may_import() -> None:
    human = "import numpy\n" + SOURCE
    edited = human.replace("import numpy", "import numpy\nimport numpy.linalg")
    assert apply_diff(human, canonical_diff(human, edited)).source == edited
    assert code_of(apply_diff, SOURCE, canonical_diff(SOURCE, human)) == "forbidden_import"


def test_the_rules_are_settings() -> None:
    rules = Rules(**EditSettings().model_dump())  # type: ignore[call-arg]
    assert apply_diff(SOURCE, DIFF, rules).source == EDITED
    assert code_of(apply_diff, SOURCE, DIFF, Rules(max_changed_lines=3)) == "too_many_changes"
    assert code_of(apply_diff, SOURCE, DIFF, Rules(path="other/train.py")) == "other_file"
    assert code_of(apply_diff, SOURCE, DIFF, Rules(must_define=("forward",))) == "missing_definition"


@pytest.mark.parametrize(
    "diff",
    [
        "@@ -1 +1 @@\n-a\n+b\n",
        HEADER + "@@\n",
        HEADER + "@@ -1,2 +1 @@\n-a\n+b\n",
        HEADER + "@@ -2 +2 @@\n-a\n+b\n",
        HEADER + "@@ -1 +1 @@\n-c\n+b\n",
        HEADER + "@@ -1 +1 @@\n-a\n+b\n@@\n-b\n+a\n",
        (HEADER + "@@ -1 +1 @@\n-a\n+b\n") * 2,
    ],
)
def test_the_exact_applier_takes_nothing_that_is_not_exact(diff: str) -> None:
    assert code_of(apply_exactly, "a\nb\n", diff) in {"bad_diff", "no_hunks", "context_not_found"}


# --- properties -------------------------------------------------------------------------------------------------------

plain = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_categories=["C", "Zl", "Zp"]), max_size=12)
awkward = st.sampled_from(["", "x = 1", " ", "-- x", "++ y", "@@", "\\ No newline", "--- a/b"])
any_text = st.lists(plain | awkward, max_size=30).map("\n".join)
loose = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@loose
@given(any_text, any_text)
def test_a_canonical_diff_says_exactly_what_changed(old: str, new: str) -> None:
    diff = canonical_diff(old, new)
    if old == new:
        assert diff == ""
    else:
        assert apply_exactly(old, diff) == new


@st.composite
def random_edits(draw: st.DrawFn) -> str:
    """SOURCE with some lines removed, doubled, moved or replaced; it still compiles."""
    edited = SOURCE.split("\n")[:-1]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(edited) - 1))
        what = draw(st.sampled_from(["delete", "double", "comment", "number", "swap"]))
        if what == "delete":
            del edited[at]
        elif what == "double":
            edited.insert(at, edited[at])
        elif what == "comment":
            edited[at] += f"  # {draw(plain)}"
        elif what == "number":
            edited[at] = edited[at].replace("1", str(draw(st.integers(2, 99))))
        else:
            edited[at - 1], edited[at] = edited[at], edited[at - 1]
    return "\n".join(edited) + draw(st.sampled_from(["\n", "", "\n\n"]))


@loose
@given(random_edits(), st.integers(0, 2**32))
def test_an_edit_survives_its_diff_however_the_numbers_are_garbled(edited: str, seed: int) -> None:
    assume(edited != SOURCE and edited.strip())
    diff = canonical_diff(SOURCE, edited)
    garbled = re.sub(r"\d+(?=[, ].*@@)", lambda _: str(random.Random(seed).randint(0, 99)), diff)
    exact = outcome(apply_diff, SOURCE, diff)
    if isinstance(exact, EditRejected):
        assert exact.code in {"syntax", "missing_definition"}
        return
    assert (exact.source, exact.diff, exact.repairs) == (edited, diff, ())
    mended = outcome(apply_diff, SOURCE, garbled)
    if isinstance(mended, AppliedEdit):  # repeated lines may stand elsewhere as well; it is still a real edit
        ast.parse(mended.source)
        assert apply_exactly(SOURCE, mended.diff) == mended.source


MARKS = [
    *("@@ -1,3 +1,3 @@", "@@", "--- a/target/train.py", "+++ b/target/train.py", "--- ", "+++ /dev/null"),
    *("diff --git ", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "+x = (", "-", "+", "\\", "```", "rename from x"),
    *SOURCE.split("\n"),
]
garbage = st.lists(st.sampled_from(MARKS) | st.text(max_size=8), max_size=25).map("\n".join)
signed = st.lists(st.tuples(st.sampled_from([" ", "-", "+", ""]), st.sampled_from(SOURCE.split("\n"))), max_size=12)
near_misses = signed.map(lambda body: HEADER + "@@ -1 +1 @@\n" + "\n".join(sign + line for sign, line in body))


@loose
@given(garbage | near_misses | st.text(), st.sampled_from([apply_diff, apply_completion]))
def test_garbage_is_refused_and_nothing_else_is_raised(text: str, door: object) -> None:
    refusal = outcome(door, SOURCE, text)
    if isinstance(refusal, EditRejected):
        assert refusal.code.isidentifier()
        assert str(refusal).isprintable()


@loose
@given(garbage | st.text(), garbage | st.text())
def test_whatever_the_sources_a_summary_is_one_short_line(old: str, new: str) -> None:
    summary = summarise(old, new)
    assert 0 < len(summary) <= 120
    assert "\n" not in summary
