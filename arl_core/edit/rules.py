"""The strict rules that every edit obeys, whichever door it came through.

They keep honest edits honest and cheap to refuse; they are no wall. The sandbox is: a candidate that reaches for the
network through an allowed module finds none.

Codes of EditRejected, stable for statistics:

    no_blocks, malformed_blocks, empty_search           the completion holds no edit that can be read
    search_not_found, ambiguous_search                  SEARCH names no line, or more than one place
    no_hunks, empty_hunk, stray_lines, bad_diff         the diff holds no edit that can be read
    context_not_found, ambiguous_context, overlap       a hunk fits nowhere, in several places, or on another one
    other_file, many_files, absolute_path, outside_path,
    rename, mode_change, binary, new_file, deleted_file it touches more than the text of the one file
    control_character, long_line, too_large,
    too_many_changes, empty_result, no_change           the text that would result
    syntax, forbidden_import, missing_definition,
    file_marks                                          the program that would result
"""

from __future__ import annotations

import ast
import difflib
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass

from arl_core.errors import EditRejected
from arl_core.records import one_line
from frozen_env.constants import parse_quietly
from frozen_env.description import built_in
from frozen_env.files import split_marked

_HARMLESS = ("__future__",)  # changes how the file is read, reaches nothing


@dataclass(frozen=True)
class Rules:
    """What an edit may do. The first three are a campaign's settings, of the same names in arl_core.config; the last two
    come from the problem's description. Defaults are the built-in problem's.
    """

    allowed_imports: tuple[str, ...] = built_in().imports  # top-level; what the file imports already is allowed too
    max_source_kb: int = 64  # of the edited file; a diff or a completion may be four times that
    max_changed_lines: int = 200  # added plus removed
    max_line_chars: int = 1000
    path: str = built_in().path  # of the one file, or of the folder of several
    must_define: tuple[str, ...] = built_in().keep  # at top level


DEFAULT_RULES = Rules()


def check_text(text: str, limit_kb: int, max_line_chars: int, what: str) -> None:
    """Raise EditRejected unless text is plain: UTF-8, no control or bidirectional characters, not too long or wide."""
    if len(text) > limit_kb * 1024:
        raise EditRejected("too_large", f"{what} has {len(text) / 1024:.0f} KB, {limit_kb} are allowed")
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > max_line_chars:
            size = f"{len(line)} characters, {max_line_chars} are allowed"
            raise EditRejected("long_line", f"line {number} of {what} has {size}")
        if line.isascii() and line.replace("\t", " ").isprintable():
            continue
        for char in line:
            # C: control, format (bidirectional tricks), surrogate, private; Zl and Zp end a line for some readers only
            if char != "\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
                raise EditRejected("control_character", f"line {number} of {what} holds the character {char!a}")


def check_source(old: str, new: str, rules: Rules = DEFAULT_RULES) -> None:
    """Raise EditRejected unless `new` may replace `old`."""
    if new == old:
        raise EditRejected("no_change", "the edit changes nothing")
    if not new.strip():
        raise EditRejected("empty_result", "nothing is left of the file")
    check_text(new, rules.max_source_kb, rules.max_line_chars, "the edited file")
    changed, allowed = count_changes(old, new, rules.max_changed_lines), rules.max_changed_lines
    if changed > allowed:
        raise EditRejected("too_many_changes", f"{changed} lines added or removed, {allowed} are allowed")
    trees = []
    for before, after in _pairs(old, new):
        trees.append(_compiled(after))
        _check_imports(trees[-1], before, rules)
    defined = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name in rules.must_define:
        if name not in defined:
            raise EditRejected("missing_definition", f"{name} is no longer defined at top level")


def _pairs(old: str, new: str) -> list[tuple[str, str]]:
    """Each file before and after. EditRejected file_marks unless the same files are there, in the same order."""
    before, after = split_marked(old), split_marked(new)
    if before is None:
        return [(old, new)]
    if after is None or list(after) != list(before):
        raise EditRejected("file_marks", "the lines that separate files must stay as they are")
    if not all(text.strip() for name, text in after.items() if before[name].strip()):
        raise EditRejected("empty_result", "nothing is left of a file")
    return [(before[name], after[name]) for name in before]


def count_changes(old: str, new: str, enough: int) -> int:
    """Return lines added plus lines removed; at least a lower bound of it once that is more than `enough`."""
    before, after = old.split("\n"), new.split("\n")
    had, has = Counter(before), Counter(after)
    least = (had - has).total() + (has - had).total()
    if least > enough:  # a hostile megabyte must not reach difflib, which is quadratic
        return least
    matcher = difflib.SequenceMatcher(None, before, after)
    return sum((i2 - i1) + (j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal")


def _compiled(source: str) -> ast.Module:
    try:
        tree = parse_quietly(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a candidate writes is not ours to be warned of
            # Finds what parsing does not: return outside a function…
            compile(tree, "<edit>", "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        raise EditRejected("syntax", f"does not compile: {one_line(error.msg or str(error))}{where}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError, SystemError) as error:
        raise EditRejected("syntax", f"does not compile: {one_line(str(error)) or type(error).__name__}") from None
    return tree


def _check_imports(tree: ast.Module, old: str, rules: Rules) -> None:
    try:
        before = {module for module, _ in _imports(parse_quietly(old))}
    except SyntaxError:
        before = set()
    allowed = {*rules.allowed_imports, *_HARMLESS, *before}
    for module, line in _imports(tree):
        if module not in allowed:
            names = ", ".join(rules.allowed_imports)
            raise EditRejected("forbidden_import", f"line {line} imports {one_line(module, 40)}; allowed: {names}")


def _imports(tree: ast.Module) -> list[tuple[str, int]]:
    """(top-level module, line) of every import, those inside functions and `__import__` included."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level if node.level else (node.module or "").partition(".")[0], node.lineno))
        elif isinstance(node, ast.Name) and node.id in ("__import__", "__builtins__"):
            found.append((node.id, node.lineno))
    return found
