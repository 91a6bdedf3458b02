"""Constants of a source: which there are, and how they are written and told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl_core.edit import changed_constants, read_constants, write_constants
from frozen_env.contract import FrozenEnvError
from tests.arl_core.edits import SOURCE


def test_constants_are_the_uppercase_literals_of_the_top_level() -> None:
    assert read_constants(SOURCE) == {"MUON_LR": 2e-3, "BETAS": (0.8, 0.95), "BATCH_TOKENS": 65536, "NAME": "muon"}
    assert read_constants("A = -1\nA = 2\nif A:\n    B = 3\nlower = 4\nC, D = 5, 6\nE = f()\n") == {"A": 2}
    assert read_constants("A = (") == read_constants("") == {}


@pytest.mark.parametrize("hostile", ["9**9**9", "2**999999", "1/0", "(-8)**0.5", "'a' * 10**9", "[1] + [2]", "1 << 9"])
def test_a_constant_that_is_no_plain_number_costs_nothing(hostile: str) -> None:
    assert read_constants(f"A = {hostile}\nB = 1\n") == {"B": 1}


def test_writing_a_constant_changes_nothing_else() -> None:
    values = {"MUON_LR": 3e-4, "BETAS": [0.9, 0.99], "BATCH_TOKENS": 8, "WIDTH": None, "NAME": "a'b"}
    assert write_constants(SOURCE, values) == (
        SOURCE.replace("2e-3", "0.0003")
        .replace("(0.8, 0.95)", "(0.9, 0.99)")
        .replace("2**16", "8")
        .replace("4 * BETAS[0]", "None")
        .replace('"muon"', '"a\'b"')
    )
    assert write_constants(SOURCE, {}) == SOURCE
    assert write_constants("A = 'é'; B = 1  # é\n", {"B": True, "A": -1.5}) == "A = -1.5; B = True  # é\n"
    assert write_constants("A = (\n  1,\n  2,\n)  # two\n", {"A": (3,)}) == "A = (3,)  # two\n"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"MUON_LRR": 1}, "no constant 'MUON_LRR'; did you mean MUON_LR"),
        ({"QQ": 1}, "no constant 'QQ'; it has: MUON_LR, BETAS"),
        ({"MUON_LR": float("nan")}, "must be finite"),
        ({"MUON_LR": {1: 2}}, "must be a number"),
    ],
)
def test_a_constant_that_cannot_be_written_is_a_clear_error(values: dict[str, object], words: str) -> None:
    with pytest.raises(FrozenEnvError, match=re.escape(words)):
        write_constants(SOURCE, values)


def test_a_target_that_does_not_parse_takes_no_constants() -> None:
    with pytest.raises(FrozenEnvError, match="line 1"):
        write_constants("A = (", {"A": 1})


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.sampled_from(["MUON_LR", "NAME"]), finite | st.text()))
def test_a_written_constant_reads_back(values: dict[str, object]) -> None:
    written = read_constants(write_constants(SOURCE, values))
    assert {name: written[name] for name in values} == values


def test_changed_constants_are_told_as_they_are_spelled() -> None:
    new = SOURCE.replace("2e-3", "0.002").replace("2**16", "2 ** 17").replace('NAME = "muon"\n', "CLIP = 1.0\n")
    assert changed_constants(SOURCE, new) == {
        "BATCH_TOKENS": ("2**16", "2 ** 17"),
        "NAME": ('"muon"', None),
        "CLIP": (None, "1.0"),
    }
    assert changed_constants(SOURCE, "(") == {}
