"""The canonical unified diff, and its exact application.

unidiff parses diffs but does not apply them, raises on wrong counts, and reads a bare `@@` as no hunk at all without a
word. The applier here stands on its hunks and checks every line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import unidiff

from arl_core.edit.places import split_lines
from arl_core.errors import EditRejected
from arl_core.records import one_line
from frozen_env.description import built_in
from frozen_env.files import join, split_marked

NO_NEWLINE = "\\ No newline at end of file\n"


def canonical_diff(old: str, new: str, path: str = built_in().path) -> str:
    """Return the unified diff from old to new as git writes it (a/ and b/ headers, three lines of context).

    Empty when nothing changed. `git apply` and apply_exactly() both take it. Of several files in one text, `path` is the
    folder and each changed one has headers of its own.
    """
    before, after = split_marked(old), split_marked(new)
    if before is not None and after is not None and list(before) == list(after):
        return "".join(_diff_of_one(before[name], after[name], f"{path}/{name}") for name in before)
    return _diff_of_one(old, new, path)


def named_path(diff: str, source: str) -> str:
    """Return the path that a canonical diff of `source` names: of its file, or of the folder of several files."""
    header = next((line for line in split_lines(diff) if line.startswith("--- a/")), "")
    path = header.removeprefix("--- a/") or built_in().path
    for name in split_marked(source) or ():
        if path.endswith(f"/{name}"):
            return path.removesuffix(f"/{name}")
    return path


def _diff_of_one(old: str, new: str, path: str) -> str:
    chunks = difflib.unified_diff(_ended(old), _ended(new), f"a/{path}", f"b/{path}")
    return "".join(chunk if chunk.endswith("\n") else chunk + "\n" + NO_NEWLINE for chunk in chunks)


def apply_exactly(source: str, diff: str) -> str:
    """Return source with a diff applied; every line and count must be right.

    EditRejected bad_diff when it is no well-formed diff of the one file, or of files that the text holds, no_hunks when it
    holds none, context_not_found when a hunk does not say what the source says at that line.
    """
    try:
        patch = unidiff.PatchSet(diff)
    except (unidiff.UnidiffParseError, ValueError) as error:
        raise EditRejected("bad_diff", f"not a unified diff: {one_line(str(error))}") from None
    hunks = [hunk for file in patch for hunk in file]
    if not hunks:
        raise EditRejected("no_hunks", "the diff holds no hunk")
    files = split_marked(source)
    if len(hunks) != sum(line.startswith("@@") for line in split_lines(diff)):
        raise EditRejected("bad_diff", "the diff has a hunk that cannot be read")
    if files is not None:
        return join(files | _apply_to_each(files, patch))
    if len(patch) != 1:
        raise EditRejected("bad_diff", "the diff is not of one file")
    return "".join(_apply(_ended(source), hunks))


def _apply_to_each(files: dict[str, str], patch: unidiff.PatchSet) -> dict[str, str]:
    """Return {name: new text} of the files that the patch changes."""
    changed: dict[str, str] = {}
    for one in patch:
        name = next((name for name in files if one.path == name or one.path.endswith(f"/{name}")), None)
        if name is None or name in changed:
            raise EditRejected(
                "bad_diff", f"the diff names {one_line(one.path, 80)}, which is none of {', '.join(files)}"
            )
        changed[name] = "".join(_apply(_ended(files[name]), list(one)))
    return changed


def _apply(lines: list[str], hunks: list[unidiff.Hunk]) -> Iterator[str]:
    """Yield the new lines. A hunk without old lines stands *after* line source_start, any other begins *at* it."""
    at = 0
    for hunk in hunks:
        old, new = _sides(hunk)
        start = hunk.source_start - 1 if old else hunk.source_start
        if not at <= start <= len(lines) or lines[start : start + len(old)] != old:
            raise EditRejected("context_not_found", f"the source has other lines at {hunk.source_start}")
        yield from lines[at:start]
        yield from new
        at = start + len(old)
    yield from lines[at:]


def _sides(hunk: unidiff.Hunk) -> tuple[list[str], list[str]]:
    """The hunk's old and new lines with their newlines; a "no newline" mark takes that of the line before it."""
    old: list[str] = []
    new: list[str] = []
    touched: list[list[str]] = []
    for line in hunk:
        if line.line_type == "\\":
            for side in touched:
                side[-1] = side[-1].removesuffix("\n")
            continue
        touched = [old] if line.is_removed else [new] if line.is_added else [old, new]
        for side in touched:
            side.append(line.value)
    return old, new


def _ended(text: str) -> list[str]:
    """Lines with their newlines; the last one may lack it."""
    lines = split_lines(text)
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
