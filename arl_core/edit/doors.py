"""The two doors: a completion of the policy, a diff from outside."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from arl_core.edit.blocks import OPEN, parse_blocks, place_blocks
from arl_core.edit.diffs import apply_exactly, canonical_diff
from arl_core.edit.rules import DEFAULT_RULES, Rules, check_source, check_text
from arl_core.edit.tolerant import parts, place_hunks, read_diff
from arl_core.errors import EditRejected
from arl_core.records import one_line
from frozen_env.files import join, split_marked


@dataclass(frozen=True)
class AppliedEdit:
    """An edit that obeys the rules: the new source, its canonical diff, and what had to be repaired on the way."""

    source: str
    diff: str
    repairs: tuple[str, ...] = ()


def apply_completion(source: str, completion: str, rules: Rules = DEFAULT_RULES) -> AppliedEdit:
    """Apply the SEARCH/REPLACE blocks of a completion. EditRejected names the rule that it breaks."""
    completion, repairs = _plain(completion, rules, "the completion")
    new, more = place_blocks(source, parse_blocks(completion))
    return _settle(source, new, (*repairs, *more), rules)


def apply_text(source: str, text: str, rules: Rules = DEFAULT_RULES) -> AppliedEdit:
    """Apply what another model wrote: SEARCH/REPLACE blocks if it holds any, else a unified diff, read tolerantly."""
    has_blocks = any(line.rstrip() == OPEN for line in text.splitlines())
    return apply_completion(source, text, rules) if has_blocks else apply_diff(source, text, rules)


def apply_diff(source: str, diff: str, rules: Rules = DEFAULT_RULES) -> AppliedEdit:
    """Apply a unified diff from outside, repairing its form. EditRejected names the rule that it breaks."""
    diff, repairs = _plain(diff, rules, "the diff")
    files = split_marked(source)
    if files is not None:
        new, more = _apply_to_files(files, diff, rules.path)
        return _settle(source, new, (*repairs, *more), rules)
    new, more = _apply_to_one(source, diff, rules.path)
    return _settle(source, new, (*repairs, *more), rules)


def _apply_to_one(source: str, diff: str, path: str) -> tuple[str, list[str]]:
    """Return the new text of one file, and the repairs."""
    hunks, repairs = read_diff(diff, source, path)
    new = None
    if not repairs:
        with contextlib.suppress(EditRejected):  # the line numbers are wrong, then
            new = apply_exactly(source, diff)
    if new is None:
        new, more = place_hunks(source, hunks)
        repairs += more
    return new, repairs


def _apply_to_files(files: dict[str, str], diff: str, folder: str) -> tuple[str, list[str]]:
    """Return the new text of several files, and the repairs. Each part of the diff takes the door of its own file."""
    changed: dict[str, str] = {}
    repairs: list[str] = []
    for named, part in parts(diff):
        bare = named.split("\t")[0].strip().removeprefix("b/")
        name = next((name for name in files if bare in (f"{folder}/{name}", name)), None)
        if name is None:
            allowed = ", ".join(f"{folder}/{name}" for name in files)
            raise EditRejected(
                "other_file", f"the diff touches {one_line(bare, 80) or 'no named file'}; allowed: {allowed}"
            )
        if name in changed:
            raise EditRejected("many_files", f"the diff has two headers for {name}, one is allowed")
        changed[name], more = _apply_to_one(files[name], part, f"{folder}/{name}")
        repairs += more
    return join(files | changed), repairs


def _plain(text: str, rules: Rules, what: str) -> tuple[str, list[str]]:
    """Mend line ends, then check that the text is plain."""
    repairs = []
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        repairs.append("crlf")
    check_text(text, 4 * rules.max_source_kb, rules.max_line_chars + 1, what)  # + 1: a diff's sign
    return text, repairs


def _settle(source: str, new: str, repairs: tuple[str, ...], rules: Rules) -> AppliedEdit:
    """Check the rules, write the canonical diff, and take from unidiff's reading of it the source that is run."""
    check_source(source, new, rules)
    diff = canonical_diff(source, new, rules.path)
    applied = apply_exactly(source, diff)
    assert applied == new, "the canonical diff does not say what the edit does"
    return AppliedEdit(applied, diff, tuple(dict.fromkeys(repairs)))
