"""Ranges of constants that a problem allows: a warm start teaches no edit outside them.

A TOML file, one line per constant: `DEPTH = { min = 4, max = 24 }` or `HEAD_DIM = [64, 128, 256]`. A constant that is not
named may have any value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arl_core.edit import read_constants
from arl_core.errors import ConfigError

Ranges = Mapping[str, Any]


def read_ranges(file: Path) -> Ranges:
    """Return the ranges of a file. ConfigError when it cannot be read or a line is neither bounds nor a list."""
    try:
        ranges = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"no ranges can be read from {file}: {error}") from None
    for name, allowed in ranges.items():
        bounds = isinstance(allowed, dict) and set(allowed) == {"min", "max"}
        if not (bounds or (isinstance(allowed, list) and allowed)):
            raise ConfigError(f"{file}: {name} = {allowed!r}; write {{ min = 1, max = 9 }} or a list of values")
    return ranges


def outside(source: str, ranges: Ranges) -> list[str]:
    """Return the names of constants that are missing, are no plain value, or lie outside their range."""
    constants = read_constants(source)
    return [name for name, allowed in ranges.items() if not _inside(constants.get(name), allowed)]


def _inside(value: Any, allowed: Any) -> bool:
    if isinstance(allowed, list):
        return value in allowed
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and allowed["min"] <= value <= allowed["max"]
