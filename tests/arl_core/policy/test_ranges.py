"""Ranges of constants that a warm start keeps to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from arl_core.edit import read_constants
from arl_core.errors import ConfigError
from arl_core.policy.ranges import outside, read_ranges
from arl_core.policy.synthesis import Told, draw_edit, synthesise

ROOT = Path(__file__).resolve().parents[3]
RANGES = {"DEPTH": {"min": 4, "max": 8}, "PATTERN": ["SSL", "SLL"]}
SOURCE = 'DEPTH = 4\nPATTERN = "SSL"\nROWS = 2**5  # rows\n'


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("4", "4"), []),
        (("4", "8"), []),
        (("4", "9"), ["DEPTH"]),
        (("4", "True"), ["DEPTH"]),
        (("DEPTH = 4", "DEPTH = open"), ["DEPTH"]),
        (("SSL", "LLL"), ["PATTERN"]),
        (('DEPTH = 4\nPATTERN = "SSL"', "A = 1"), ["DEPTH", "PATTERN"]),
    ],
)
def test_what_lies_outside_is_named(change: tuple[str, str], names: list[str]) -> None:
    assert outside(SOURCE.replace(*change), RANGES) == names


@pytest.mark.parametrize("text", ["DEPTH = 4", "DEPTH = { min = 4 }", "DEPTH = []", "DEPTH ="])
def test_a_file_that_says_no_ranges_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ranges.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"ranges\.toml"):
        read_ranges(tmp_path / "ranges.toml")


def test_no_state_and_no_edit_that_is_taught_lies_outside() -> None:
    source = (ROOT / "bench" / "replay" / "target.py").read_text(encoding="utf-8")
    ranges = read_ranges(ROOT / "bench" / "replay" / "ranges.toml")
    assert outside(source, ranges) == []
    examples = synthesise(source, 20, 6, Told("Try.", ranges=ranges), len, 2500, 0, 3)
    assert not any(outside(one.source, ranges) for one in examples)
    assert sum(len(one.edits) for one in examples) > 100


def test_a_power_of_two_moves_by_its_exponent_and_stays_one() -> None:
    rng = random.Random(0)
    drawn = [blocks for _ in range(200) if (blocks := draw_edit("ROWS = 2**5  # rows\n", rng, 1))]
    moved = {blocks[0][1] for blocks in drawn}
    assert moved == {f"ROWS = 2**{power}  # rows" for power in (3, 4, 6, 7)}
    assert read_constants(moved.pop())["ROWS"] in {8, 16, 64, 128}
