"""Fields of a TOML file, taken with their checks: what is wrong with one becomes a sentence that names it and the remedy."""

from __future__ import annotations

import math
import re
import shlex
from typing import Any


class Fields:
    """Tables of a TOML file and the complaints about them. A method returns None for a field that it complained about."""

    def __init__(self, file: str, tables: dict[str, Any]) -> None:
        self.file, self.tables = file, tables
        self.complaints: list[str] = []

    def get(self, name: str) -> Any:
        table, _, key = name.rpartition(".")
        inside = self.tables.get(table, {}) if table else self.tables
        return inside.get(key) if isinstance(inside, dict) else None

    def complain(self, name: str, what: str) -> None:
        self.complaints.append(f"{self.file}: {name} {what}")

    def text(self, name: str, what: str, default: str | None = None) -> str | None:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            self.complain(name, f"is missing; give {what}")
        elif not isinstance(value, str) or not value.strip():
            self.complain(name, f"must be text, got {value!r}; give {what or 'a name'}")
        else:
            return value
        return None

    def pattern(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        value = self.text(name, what)
        if value is not None and not pattern.match(value):
            self.complain(name, f"must be {what}; got {value!r}")
            return None
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str | None) -> Any:
        value = self.get(name)
        if value is None and default is not None:
            return default
        words = " or ".join(f'"{choice}"' for choice in choices)
        if value is None:
            self.complain(name, f"is missing; write {words}")
        elif value not in choices:
            self.complain(name, f"must be {words}, got {value!r}")
        else:
            return value
        return None

    def positive(self, name: str, what: str, default: float | None = None) -> float | None:
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            self.complain(name, f"is missing; give {what}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            self.complain(name, f"must be a positive number, got {value!r}; give {what}")
        else:
            return float(value)
        return None

    def words(self, name: str) -> tuple[str, ...] | None:
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            self.complain(name, f'must be a list of texts, such as ["numpy"], got {value!r}')
            return None
        return tuple(value)

    def table(self, name: str) -> dict[str, Any] | None:
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.complain(name, f"must be a table: write [{name}] and its fields below")
            return None
        return value

    def command(self, name: str, example: str) -> tuple[str, ...] | None:
        value = self.text(name, f'the command that is run, such as "{example}"')
        if value is None:
            return None
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            self.complain(name, f"is no command: {error}; got {value!r}")
            return None

    def regex(self, name: str) -> str | None:
        value = self.text(name, "", "") if self.get(name) is not None else ""
        if not value:
            return value
        try:
            groups = re.compile(value).groups
        except re.error as error:
            self.complain(name, f"is no regular expression: {error}; got {value!r}")
            return None
        if not groups:
            self.complain(name, f"has no group: put parentheses around the loss, as in 'loss ([0-9.]+)'; got {value!r}")
            return None
        return value
