"""Edits that a researcher would try, as templates in a problem's folder (levers.toml): what the warm start is made of.

    [options]
    gain = ["0.5", "2.0"]
    [[lever]]
    kind = "activation"
    search = "    return relu(x)"
    replace = ["    return {gain} * relu(x)"]

A lever is one or more blocks; `{name}` in a replacement is drawn from the options, so that one lever gives many edits. The
warm start claims nothing about which of them is good beyond a sane range. A lever whose SEARCH is not in the present
state of the file (an earlier edit changed it) is skipped. A folder without the file has none: then constants move.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arl_core.errors import ConfigError
from frozen_env.description import LEVERS, Description, built_in


@dataclass(frozen=True)
class Lever:
    """A named kind of edit; `blocks` are (SEARCH, REPLACE) pairs without their last newline."""

    kind: str
    blocks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Levers:
    """The templates of one problem, and what their names stand for."""

    every: tuple[Lever, ...] = ()
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def levers_of(problem: Description) -> Levers:
    """Return the templates in a problem's folder. Raises ConfigError when the file is there but cannot be read."""
    return read_levers(problem.folder / LEVERS)


@functools.cache
def built_in_levers() -> Levers:
    """Return the built-in problem's templates."""
    return levers_of(built_in())


def read_levers(path: Path) -> Levers:
    """Return the templates of a file, none when there is no such file. Raises ConfigError that names what is wrong."""
    if not path.is_file():
        return Levers()
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        options = {name: tuple(map(str, values)) for name, values in tables.get("options", {}).items()}
        return Levers(tuple(one for table in tables.get("lever", []) for one in _levers(table)), options)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; mend that line") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: a [[lever]] has kind, and search with a list replace, or blocks of two texts each; found {error!r}"
        ) from error


def _levers(table: dict[str, Any]) -> list[Lever]:
    kind = str(table["kind"])
    if "blocks" in table:
        return [Lever(kind, tuple((str(search), str(replace)) for search, replace in table["blocks"]))]
    return [Lever(kind, ((str(table["search"]), str(replace)),)) for replace in table["replace"]]
