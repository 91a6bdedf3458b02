"""Which lines SEARCH may name."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from arl_core.policy.policy import Policy
from arl_core.policy.searchable import constants_of, plain_constants, searchable_runs, wholes_of
from tests.arl_core.policy.conftest import PROMPT, SOURCE


def texts(source: str, max_lines: int = 3) -> list[str]:
    return [run.text for run in searchable_runs(source, max_lines)]


def test_every_run_occurs_exactly_once_as_whole_lines() -> None:
    runs = texts(SOURCE)
    assert runs
    assert all(("\n" + SOURCE).count("\n" + run) == 1 for run in runs)


def test_an_ambiguous_line_is_reached_through_a_unique_neighbour() -> None:
    runs = texts(SOURCE)
    assert "    return left\n" not in runs
    assert "    left = 1.0\n    return left\n" in runs


def test_a_line_that_only_ends_like_another_is_not_ambiguous() -> None:
    assert "LR = 1\n" in texts("MUON_LR = 1\nLR = 1\n")


def test_runs_have_at_most_the_allowed_lines_and_neither_end_is_blank() -> None:
    for run in texts(SOURCE, 2):
        lines = run.splitlines()
        assert len(lines) <= 2
        assert lines[0].strip()
        assert lines[-1].strip()


def test_documentation_imports_and_continuations_are_left_alone() -> None:
    runs = texts('"""Doc."""\nimport torch\nif torch:\n    a = 1\nelse:\n    a = 2\n')
    assert not any("Doc" in run or "import" in run or run.startswith("else") for run in runs)


def test_a_bracketed_expression_counts_with_all_its_lines() -> None:
    runs = texts("a = f(\n    1,\n)\nb = 2\n")
    assert "a = f(\n    1,\n)\n" in runs
    assert "    1,\n" not in runs


def test_a_run_says_what_must_replace_it() -> None:
    by_text = {run.text: run for run in searchable_runs(SOURCE, 3)}
    assert by_text["        for _ in range(DEPTH):\n"].header == "for"
    inner = by_text["            x = torch.relu(x)\n"]
    assert (inner.depth, inner.in_loop, inner.in_function, inner.header) == (3, True, True, "")
    assert not by_text["DEPTH = 4  # blocks\n"].in_function


def test_no_run_cuts_a_block_in_two() -> None:
    """Replacing any closed run by one statement of its depth still parses."""
    for run in searchable_runs(SOURCE, 3):
        replacement = " " * 4 * run.depth + "pass\n"
        if not run.header:
            ast.parse(SOURCE.replace(run.text, replacement))


def test_functions_and_classes_are_edited_from_inside() -> None:
    """A new header could neither keep their name nor take self."""
    words = ("def ", "class ")
    assert not any(line.lstrip().startswith(words) for run in texts(SOURCE) for line in run.splitlines())
    assert "        self.up = nn.Linear(8, 8)\n" in texts(SOURCE)


def test_no_run_leaves_an_else_without_its_if() -> None:
    source = "if x:\n    y = 1\nelif z:\n    y = 2\nelse:\n    y = 3\nw = 4\n"
    assert texts(source, 6) == [
        "if x:\n",
        source[: -len("w = 4\n")],
        "    y = 1\n",
        "    y = 2\n",
        "    y = 3\n",
        "w = 4\n",
    ]
    assert texts("for i in x:\n    y = i\nelse:\n    y = 0\n", 2) == ["for i in x:\n", "    y = i\n", "    y = 0\n"]


@pytest.mark.parametrize("unit", ["  ", "    ", "\t"])
def test_depth_is_counted_in_the_files_own_indentation(unit: str) -> None:
    source = "A = 1\ndef f(x):\n\tfor i in x:\n\t\tx = i\n".replace("\t", unit)
    by_text = {run.text: run for run in searchable_runs(source, 3)}
    inner = by_text[f"{unit * 2}x = i\n"]
    assert (inner.depth, inner.unit, inner.in_function, inner.in_loop) == (2, unit, True, True)
    assert (by_text["A = 1\n"].depth, by_text["A = 1\n"].unit) == (0, unit)


def test_indentation_that_mixes_tabs_and_spaces_is_left_alone() -> None:
    assert texts("if x:\n\tif y:\n\t  z = 1\n\tw = 2\n", 1) == ["if x:\n", "\tif y:\n", "\tw = 2\n"]


@pytest.mark.parametrize("odd", ["\x0c", "\u2028", "\x85", "\x1c"])
def test_lines_are_counted_as_python_counts_them(odd: str) -> None:
    source = f'"""One{odd}and two."""\nA = 1\nB = 2\n'
    assert texts(source, 1) == ["A = 1\n", "B = 2\n"]


def test_a_source_that_cannot_be_tokenized_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        searchable_runs("f(\n", 3)
    assert searchable_runs("", 3) == []


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("DEPTH = 4  # blocks\n", ("DEPTH",)),
        ("DEPTH = 4\nMUON_LR = 2e-3\n", ("DEPTH", "MUON_LR")),
        ("    WIDTH = 4\n", ("WIDTH",)),
        ("left = 1.0\n", ()),
        ("DEPTH = 4\nleft = 1.0\n", ()),
        ("A, B = 1, 2\n", ()),
        ("def forward(self, x):\n", ()),
    ],
)
def test_lines_that_only_give_constants_their_values_are_known(lines: str, names: tuple[str, ...]) -> None:
    assert constants_of(lines) == names


def test_a_constant_that_is_edited_keeps_its_name_whatever_the_weights_say(load: Callable[..., Policy]) -> None:
    source = "DEPTH = 4  # blocks\nMUON_LR = 2e-3  # peak step\n"
    policy = load(max_new_tokens=320)
    for rollout in policy.propose_many([PROMPT] * 12, [source] * 12, range(12)):
        for block in rollout.blocks:
            assert constants_of(block.replace) == constants_of(block.search)
            assert wholes_of(block.replace) >= wholes_of(block.search)


def test_a_script_with_lowercase_settings_keeps_their_names_too(load: Callable[..., Policy]) -> None:
    source = "n_layer = 2\nlearning_rate = 3e-3\nstep = open\n"
    assert plain_constants(source) == {"n_layer", "learning_rate"}
    assert plain_constants("DEPTH = 1\nleft = 2\n") == frozenset()
    settings, edited = plain_constants(source), 0
    for rollout in load(max_new_tokens=320).propose_many([PROMPT] * 12, [source] * 12, range(12)):
        for block in rollout.blocks:
            if names := constants_of(block.search, settings):
                edited += 1
                assert constants_of(block.replace, settings) == names
                assert wholes_of(block.replace) >= wholes_of(block.search)
    assert edited


def test_whole_numbers_are_told_from_other_values() -> None:
    assert wholes_of('A = 4\nB = 2**19\nC = 4.0\nD = True\nE = "x"\nF = (1, 2)\n') == {"A", "B"}


def test_no_block_takes_back_what_an_earlier_block_of_its_edit_wrote(load: Callable[..., Policy]) -> None:
    source = "DEPTH = 4  # blocks\nMUON_LR = 2e-3  # peak step\nWIDTH = 64\n"
    policy = load(max_new_tokens=480, max_blocks=3)
    rollouts = policy.propose_many([PROMPT] * 12, [source] * 12, range(12))
    assert sum(len(rollout.blocks) > 1 for rollout in rollouts) >= 3
    for rollout in rollouts:
        searched = [line for block in rollout.blocks for line in block.search.splitlines()]
        assert len(searched) == len(set(searched))
        assert set(searched) <= set(source.splitlines())
