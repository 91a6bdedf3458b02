"""One line that says what an edit changed, for tables, prompts and run names."""

from __future__ import annotations

import ast
import difflib

from arl_core.edit.places import split_lines
from arl_core.records import one_line, source_hash
from frozen_env.constants import changed_constants, constant_statements, parse_quietly

_SPOT_CHARS = 48  # of a line quoted from the source
_IDLE = "comments or spelling only"
_CONSTANT = "="  # the home of lines that assign a constant


def summarise(old: str, new: str, limit: int = 120) -> str:
    """Return at most `limit` printable characters: constants first (`MUON_LR: 2e-3 → 2.8e-3`), then what was touched
    elsewhere, by function (`Attention.forward: y = … → y = norm(…)`). The words are the candidate's, flattened and
    defused by one_line().
    """
    if new == old:
        return "no change"
    if source_hash(old) == source_hash(new):
        return _IDLE
    parts = [
        f"{name}: {_short(was) if was else 'none'} → {_short(becomes) if becomes else 'none'}"
        for name, (was, becomes) in changed_constants(old, new).items()
    ]
    return one_line("; ".join([*parts, *_touched(old, new)]), limit) or _IDLE


def _touched(old: str, new: str) -> list[str]:
    """One phrase per function or class in which lines changed, in order; the lines of constants are told already."""
    before, after = _homes(old), _homes(new)
    old_lines, new_lines = split_lines(old), split_lines(new)
    phrases: dict[str, str] = {}
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old_lines, new_lines, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        was, becomes = _first_code(old_lines, i1, i2), _first_code(new_lines, j1, j2)
        if was is None and becomes is None:
            continue  # comments and blank lines
        home = after.get(becomes, "") if becomes is not None else before.get(was or 0, "")
        if home in phrases or home == _CONSTANT:
            continue
        if home and home not in before.values():
            phrases[home] = f"adds {home}"
        elif home and home not in after.values():
            phrases[home] = f"removes {home}"
        else:
            spot = _spot(old_lines, was, new_lines, becomes)
            phrases[home] = f"{home}: {spot}" if home else spot
    return list(phrases.values())


def _spot(old_lines: list[str], was: int | None, new_lines: list[str], becomes: int | None) -> str:
    if was is None:
        assert becomes is not None
        return f"+ {_short(new_lines[becomes])}"
    if becomes is None:
        return f"- {_short(old_lines[was])}"
    return f"{_short(old_lines[was])} → {_short(new_lines[becomes])}"


def _short(text: str) -> str:
    return one_line(text.strip(), _SPOT_CHARS)


def _first_code(lines: list[str], start: int, end: int) -> int | None:
    """Index of the first line in [start, end) that is neither blank nor a comment."""
    return next((i for i in range(start, end) if lines[i].strip() and not lines[i].lstrip().startswith("#")), None)


def _homes(source: str) -> dict[int, str]:
    """{line index: dotted name of the innermost function or class around it}; {} when the source does not parse."""
    homes: dict[int, str] = {}

    def mark(node: ast.stmt, first: int, name: str) -> None:
        for line in range(first - 1, node.end_lineno or node.lineno):
            homes[line] = name

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
                mark(child, min([child.lineno, *(d.lineno for d in child.decorator_list)]), inner)
            visit(child, inner)

    try:
        module = parse_quietly(source)
        visit(module, "")
        for statement in constant_statements(module):
            mark(statement, statement.lineno, _CONSTANT)
    except (SyntaxError, RecursionError):
        return {}
    return homes
