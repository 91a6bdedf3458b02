"""Which runs of lines SEARCH may name: whole statements, found exactly once, whose replacement can be valid Python.

The rule for ambiguity: a run that occurs more than once in the source is left out; the same lines become available with
a neighbour that makes them unique. Runs are whole logical lines (a bracketed expression counts with all its lines),
neither start nor end blank, hold more than documentation, and either close at their own depth or end in a block header.
Functions and classes are edited from inside: a new header could not give them back the name that others call.
"""

from __future__ import annotations

import ast
import io
import textwrap
import tokenize
from collections.abc import Collection
from dataclasses import dataclass

from arl_core.edit import read_constants
from arl_core.policy.python_lines import HEADERS, INDENT
from frozen_env.files import is_marked

CONTINUES = {"elif", "else", "except", "finally", "case"}  # they belong to a statement above
LEFT_ALONE = {"import", "from", "@", "try", "match", "async", "def", "class"}  # REPLACE could not say them again


@dataclass(frozen=True)
class Statement:
    """One logical line: physical lines [first, last] counted from 0, depth in levels and as written, its first word."""

    first: int
    last: int
    depth: int
    indent: str
    word: str
    header: bool
    prose: bool  # only a string: documentation


@dataclass(frozen=True)
class Run:
    """Lines that SEARCH may name, and what REPLACE must be, in the words of replace_grammar."""

    text: str
    code: str  # its statements alone: nothing between them, no documentation
    first: int
    depth: int
    unit: str
    header: str
    in_function: bool
    in_loop: bool


def lines_of(source: str) -> list[str]:
    """Return the lines with their ends, as tokenize and ast count them; splitlines() also breaks at form feeds and others."""
    return list(io.StringIO(source))


def statements(source: str) -> list[Statement]:
    """Return the logical lines of a Python source in order. Raises SyntaxError or tokenize.TokenError."""
    found: list[Statement] = []
    line: list[tokenize.TokenInfo] = []
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type in skip:
            continue
        if token.type != tokenize.NEWLINE:
            line.append(token)
            continue
        if line:
            start, end = line[0], line[-1]
            found.append(
                Statement(
                    first=start.start[0] - 1,
                    last=end.end[0] - 1,
                    depth=depth,
                    indent=start.line[: start.start[1]],
                    word=start.string,
                    header=end.string == ":",
                    prose=len(line) == 1 and start.type == tokenize.STRING,
                )
            )
        line = []
    return found


def _enclosing(found: list[Statement], index: int) -> list[str]:
    """Return the words of the headers around a statement, innermost first."""
    words, depth = [], found[index].depth
    for statement in reversed(found[:index]):
        if statement.header and statement.depth < depth:
            words.append(statement.word)
            depth = statement.depth
    return words


def _header_that_must_end(found: list[Statement], a: int, b: int) -> str | None:
    """Return "" for a run closed at its depth, the header's word for one that opens a block, None for neither."""
    depth = found[a].depth
    if any(s.depth < depth for s in found[a : b + 1]):
        return None
    if found[b].header:
        return found[b].word if found[b].depth == depth and found[b].word in HEADERS else None
    if b + 1 == len(found):
        return ""
    following = found[b + 1]
    goes_on = following.depth > depth or (following.depth == depth and following.word in CONTINUES)
    return None if goes_on else ""


def searchable_runs(source: str, max_lines: int, max_chars: int = 240) -> list[Run]:
    """Return every run of at most max_lines physical lines that SEARCH may name, in source order.

    Returns the empty list for a source without one. Raises SyntaxError when the source cannot be tokenized.
    """
    try:
        found = statements(source)
    except tokenize.TokenError as error:
        raise SyntaxError(str(error)) from error
    lines = lines_of(source)
    usual = next((s.indent for s in found if s.depth == 1), " " * INDENT)
    runs = []
    for a, start in enumerate(found):
        if start.word in CONTINUES or (a and found[a - 1].word == "@"):
            continue
        unit = start.indent[: len(start.indent) // start.depth] if start.depth else usual
        if start.indent != unit * start.depth:  # tabs and spaces, or a form feed
            continue
        around = _enclosing(found, a)
        for b in range(a, len(found)):
            if found[b].last - start.first >= max_lines:
                break
            inside = found[a : b + 1]
            header = _header_that_must_end(found, a, b)
            text = "".join(lines[start.first : found[b].last + 1])
            if header is None or all(s.prose for s in inside) or any(s.word in LEFT_ALONE for s in inside):
                continue
            if is_marked(text):  # it reaches from one file into the next
                continue
            if len(text) > max_chars or not text.endswith("\n") or _occurrences(source, text) != 1:
                continue
            loop = next((w for w in around if w in ("for", "while", "def")), "") in ("for", "while")
            code = "".join("".join(lines[s.first : s.last + 1]) for s in inside if not s.prose)
            runs.append(Run(text, code, start.first, start.depth, unit, header, "def" in around, loop))
    return runs


def _occurrences(source: str, text: str) -> int:
    """Count the places where these whole lines stand in a source, overlapping ones too: the patch must find one."""
    source, text = "\n" + source, "\n" + text
    count, start = 0, source.find(text)
    while start >= 0:
        count += 1
        start = source.find(text, start + 1)
    return count


def constants_of(text: str, plain: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names that these lines assign if they do nothing else: NAME = value, one a line. Else ().

    NAME is UPPERCASE, or one of `plain`: the settings of a script that has lowercase ones.
    """
    try:
        body = ast.parse(textwrap.dedent(text)).body
    except SyntaxError:
        return ()
    names = [
        node.targets[0].id
        for node in body
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    ]
    return tuple(names) if len(names) == len(body) and all(name.isupper() or name in plain for name in names) else ()


def plain_constants(source: str) -> frozenset[str]:
    """Return the lowercase settings of a script that has no UPPERCASE ones; none where it has or does not parse."""
    return frozenset(name for name in read_constants(source) if not name.isupper())


def wholes_of(text: str) -> frozenset[str]:
    """Return the constants among these lines that hold a whole number."""
    constants = read_constants(textwrap.dedent(text))
    return frozenset(name for name, value in constants.items() if type(value) is int)


def comments_of(text: str) -> tuple[str, ...]:
    """Return the comments at the ends of these lines, `#` included, printable ASCII only; () when they cannot be tokenized."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(textwrap.dedent(text)).readline))
    except (tokenize.TokenError, SyntaxError):
        return ()
    return tuple(
        t.string for t in tokens if t.type == tokenize.COMMENT and t.string.isascii() and t.string.isprintable()
    )
