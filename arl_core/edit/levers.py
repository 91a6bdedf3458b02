"""The levers of an edit: names of the constants, functions and classes that its changed lines belong to.

For statistics over thousands of edits: reads the canonical diff against a map of the parent, which is made once, and does
not parse the edited program.
"""

from __future__ import annotations

import ast
import functools
import re

from frozen_env.constants import constant_statements, parse_quietly
from frozen_env.files import is_marked, mark, split_marked

MODULE_LEVEL = "(module)"
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? ")
_SIDES = re.compile(r"^@@ -(\S+) \+(\S+) @@")
_CONSTANT = re.compile(r"^([A-Z][A-Z0-9_]*)\s*(?::[^=]*)?=(?!=)")


def levers(source: str, diff: str) -> tuple[str, ...]:
    """Return what `diff`, canonical and against `source`, touches, in order of appearance; () without a changed line of code.

    A line of a constant counts for the constant; any other for the innermost function or class of the parent that it
    stood in, or was put into; `(module)` for the rest. Comments and blank lines count for nothing.
    """
    places = _places(source)
    found: dict[str, None] = {}
    at = 0  # index of the next old line; lines before the first hunk are the file's header
    in_hunk = False
    first = 0  # line at which the file of the present hunks begins in the text
    lines = diff.splitlines()
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        if line.startswith("--- a/") and following.startswith("+++ b/"):
            in_hunk, first = False, _first_line(source, line)
            continue
        header = _HUNK.match(line)
        if header:
            in_hunk = True
            at = first + int(header[1]) - (header[2] != "0")  # a hunk without old lines stands after its line
            continue
        if not in_hunk or line.startswith("\\"):
            continue
        sign, text = line[:1], line[1:]
        is_code = bool(text.strip()) and not text.lstrip().startswith("#")
        if sign == "-" and is_code:
            found[_name(text, places.get(at))] = None
        elif sign == "+" and is_code:
            found[_name(text, places.get(at - 1))] = None
        at += sign in (" ", "-")
    return tuple(found)


def levers_seen_from(edited: str, diff: str) -> tuple[str, ...]:
    """Return the levers of `diff` when only the edited source is at hand: those of the way back."""
    swap = {"+": "-", "-": "+"}
    lines = []
    for line in diff.splitlines():
        header = _SIDES.match(line)
        if header:
            lines.append(f"@@ -{header[2]} +{header[1]} @@")
        else:
            lines.append(swap.get(line[:1], line[:1]) + line[1:])
    return levers(edited, "\n".join(lines))


def _first_line(source: str, header: str) -> int:
    """Index of the first line of the file that a header names, in a text of several; 0 in a text of one."""
    if not is_marked(source):
        return 0
    for index, line in enumerate(source.split("\n")):
        if any(header.endswith(f"/{name}") and line == mark(name) for name in split_marked(source) or ()):
            return index + 1
    return 0


def _name(text: str, place: str | None) -> str:
    constant = _CONSTANT.match(text)
    if constant:
        return constant[1]
    if place is None or not text[:1].isspace():
        definition = re.match(r"(?:async )?(?:def|class) (\w+)", text)
        return definition[1] if definition else MODULE_LEVEL
    return place


@functools.lru_cache(maxsize=32)
def _places(source: str) -> dict[int, str]:
    """{line index: constant, function or class}; {} when the source does not parse."""
    places: dict[int, str] = {}

    def visit(body: list[ast.stmt], name: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            inner = f"{name}.{node.name}" if name else node.name
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            places.update(dict.fromkeys(range(first - 1, node.end_lineno or node.lineno), inner))
            visit(node.body, inner)

    try:
        module = parse_quietly(source)
    except SyntaxError:
        return {}
    visit(module.body, "")
    for statement in constant_statements(module):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        assert isinstance(target, ast.Name)
        lines = range(statement.lineno - 1, statement.end_lineno or statement.lineno)
        places.update(dict.fromkeys(lines, target.id))
    return places
