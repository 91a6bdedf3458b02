"""The page of settings says what each of them means."""

from __future__ import annotations

from arl_core.config import setting_names
from arl_core.reference import MEANINGS, render


def rows() -> dict[str, str]:
    """Meaning by setting."""
    cells = [line.strip("| ").split(" | ", 2) for line in render().splitlines() if line.startswith("| `")]
    return {each[0].strip("`"): each[2] if len(each) == 3 else "" for each in cells}


def test_every_setting_has_a_row_and_a_meaning() -> None:
    told = rows()
    assert sorted(told) == sorted(setting_names())
    assert [name for name, meaning in told.items() if len(meaning) < 3] == []


def test_no_meaning_is_kept_for_a_setting_that_is_gone() -> None:
    assert set(MEANINGS) <= set(setting_names())
