"""The constants of a source: read, compared, written. UPPERCASE by custom; in a script that has none, lowercase ones.

They are the settings of a candidate: assignments at top level, one name each. An edit can do anything; a preset, a
table of parameters and a replayed campaign speak of these.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from frozen_env.contract import FrozenEnvError

_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
_ANY_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def read_constants(source: str) -> dict[str, Any]:
    """Return {NAME: value} of the constants whose value is a literal or plain arithmetic (2**16, 10 * 60), in order.

    Others are left out; {} when the source does not parse.
    """
    try:
        nodes = _nodes(source)
    except SyntaxError:
        return {}
    found = {}
    for name, values in nodes.items():
        try:
            found[name] = _value(values[-1])
        except (ValueError, TypeError, ArithmeticError, MemoryError, RecursionError):
            continue
    return found


def changed_constants(old: str, new: str) -> dict[str, tuple[str | None, str | None]]:
    """Return {NAME: (before, after)} as each source spells it; None where the constant is not there.

    Spelling alone is no change: 2e-3 is 0.002. {} when either source does not parse.
    """
    try:
        before, after = _nodes(old), _nodes(new)
    except SyntaxError:
        return {}
    changed: dict[str, tuple[str | None, str | None]] = {}
    for name in (*before, *(name for name in after if name not in before)):
        was, becomes = before.get(name), after.get(name)
        if [ast.dump(node) for node in was or ()] != [ast.dump(node) for node in becomes or ()]:
            changed[name] = (_spelling(old, was), _spelling(new, becomes))
    return changed


def write_constants(source: str, values: Mapping[str, Any]) -> str:
    """Return the source with these constants' right-hand sides replaced; comments and all other bytes stay.

    Values are numbers, strings, booleans, None, or tuples and lists of them (written as tuples). FrozenEnvError for a
    constant that the source does not have, a value that cannot be written, or a source that does not parse.
    """
    if not values:
        return source
    try:
        nodes = _nodes(source)
    except SyntaxError as error:
        raise FrozenEnvError(f"the target does not parse (line {error.lineno}: {error.msg}); mend it first") from None
    spans: list[tuple[int, int, bytes]] = []
    data = source.encode("utf-8")
    starts = _line_starts(data)
    for name, value in values.items():
        if name not in nodes:
            close = difflib.get_close_matches(name, nodes, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has: {', '.join(nodes) or 'none'}"
            raise FrozenEnvError(f"the target has no constant {name!r}; {hint}")
        text = _literal(name, value).encode("utf-8")
        for node in nodes[name]:
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            start = starts[node.lineno - 1] + node.col_offset  # offsets count UTF-8 bytes
            spans.append((start, starts[node.end_lineno - 1] + node.end_col_offset, text))
    for start, end, text in sorted(spans, reverse=True):
        data = data[:start] + text + data[end:]
    return data.decode("utf-8")


def parse_quietly(text: str) -> ast.Module:
    """Parse Python without its warnings. SyntaxError for everything that does not parse, hostile depth included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in a candidate is not ours to report
            return ast.parse(text)
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:  # NUL byte, nesting, huge literals
        raise SyntaxError(str(error) or type(error).__name__) from None


def _nodes(source: str) -> dict[str, list[ast.expr]]:
    """{NAME: the expressions assigned to it at top level, in order}."""
    found: dict[str, list[ast.expr]] = {}
    for statement in constant_statements(parse_quietly(source)):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        assert isinstance(target, ast.Name)
        assert statement.value is not None
        found.setdefault(target.id, []).append(statement.value)
    return found


def constant_statements(module: ast.Module) -> list[ast.Assign | ast.AnnAssign]:
    """The statements at top level that give an UPPERCASE name a value.

    Where there is none, as in scripts that keep their settings in plain globals (learning_rate = 6e-4): those that give a
    lowercase name a plain number, string or boolean.
    """
    every = _named_statements(module, _ANY_NAME)
    upper = [statement for statement in every if _NAME.match(_target(statement))]
    return upper or [statement for statement in every if _is_plain(statement.value)]


def _target(statement: ast.Assign | ast.AnnAssign) -> str:
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    assert isinstance(target, ast.Name)
    return target.id


def _is_plain(value: ast.expr | None) -> bool:
    try:
        return value is not None and isinstance(_value(value), bool | int | float | str)
    except (ValueError, TypeError, ArithmeticError, MemoryError, RecursionError):
        return False


def _named_statements(module: ast.Module, pattern: re.Pattern[str]) -> list[ast.Assign | ast.AnnAssign]:
    found: list[ast.Assign | ast.AnnAssign] = []
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            targets: list[ast.expr] = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        else:
            continue
        if len(targets) == 1 and isinstance(targets[0], ast.Name) and pattern.match(targets[0].id):
            found.append(statement)
    return found


def _value(node: ast.expr) -> Any:
    """literal_eval, and arithmetic on numbers within bounds: the source is a candidate's, and 9**9**9 never ends."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left), _value(node.right)
        if not all(isinstance(side, int | float) and abs(side) < 1e18 for side in (left, right)):
            raise ValueError("not plain arithmetic")
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("exponent too large")
        value = _ARITHMETIC[type(node.op)](left, right)
        if isinstance(value, complex):
            raise ValueError("not a real number")
        return value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    return ast.literal_eval(node)


def _literal(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        items = [_literal(name, item) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, float) and not math.isfinite(value):
        raise FrozenEnvError(f"{name} must be finite, got {value!r}")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise FrozenEnvError(f"{name} must be a number, a string or a tuple of them, got {value!r}")
    return repr(value)


def _spelling(source: str, nodes: list[ast.expr] | None) -> str | None:
    return (ast.get_source_segment(source, nodes[-1]) or ast.unparse(nodes[-1])) if nodes else None


def _line_starts(data: bytes) -> list[int]:
    """Byte offset of every line, as ast counts lines: at \\n, \\r\\n and \\r."""
    return [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", data))]
