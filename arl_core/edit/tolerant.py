"""Read a unified diff that another model or a person wrote: forgiving about form, strict about what it touches.

Repaired, and recorded: Windows line ends, code fences, talk around the diff, missing file headers, a file name without
its folder, hunk headers without numbers, wrong counts, wrong line numbers, blank context lines that lost their space,
trailing whitespace. Refused: anything but changed lines of the one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from arl_core.edit.places import find_run, split_lines
from arl_core.errors import EditRejected
from arl_core.records import one_line

_HUNK = re.compile(r"^@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_REFUSED = (  # lines of a git header, outside hunks
    (re.compile(r"^(rename|copy) (from|to) |^(dis)?similarity index "), "rename", "renames or copies a file"),
    (re.compile(r"^(old|new) mode "), "mode_change", "changes a file's mode"),
    (re.compile(r"^new file mode "), "new_file", "adds a file"),
    (re.compile(r"^deleted file mode "), "deleted_file", "deletes the file"),
    (re.compile(r"^GIT binary patch|^Binary files? "), "binary", "holds binary data"),
)


@dataclass
class Hunk:
    """A change: `old` becomes `new`; context is in both. start is the first old line as told, None when not told."""

    start: int | None
    counts: tuple[int, int] | None
    body: list[str] = field(default_factory=list)  # each line with its sign

    @property
    def old(self) -> list[str]:
        return [line[1:] for line in self.body if line[0] in " -"]

    @property
    def new(self) -> list[str]:
        return [line[1:] for line in self.body if line[0] in " +"]

    @property
    def complete(self) -> bool:
        return self.counts is not None and (len(self.old), len(self.new)) == self.counts


def read_diff(text: str, source: str, path: str) -> tuple[list[Hunk], list[str]]:
    """Return the hunks of a diff and the repairs made. EditRejected for what it may not touch or cannot mean."""
    repairs: list[str] = []
    hunks: list[Hunk] = []
    known = set(split_lines(source))
    named = 0  # file headers seen
    open_hunk: Hunk | None = None
    lines = split_lines(text)
    skip = False
    for i, line in enumerate(lines):
        if skip:  # the +++ of a header whose --- was just read
            skip = False
            continue
        following = [*lines[i + 1 : i + 3], "", ""]
        if line.startswith("@@") and (open_hunk is None or not _expects(open_hunk, line)):
            open_hunk = _open_hunk(line, repairs)
            hunks.append(open_hunk)
        elif line.startswith("--- ") and following[0].startswith("+++ ") and (open_hunk is None or open_hunk.complete):
            named += 1
            for header in (line, following[0]):
                _check_name(header[4:], path, repairs)
            open_hunk, skip = None, True
        elif line.startswith("--- ") and following[0].startswith("+++ ") and following[1].startswith("@@"):
            raise EditRejected("many_files", "the diff has a second file header where a hunk is not complete")
        elif open_hunk is not None and _belongs(line, open_hunk, known):
            _add(line, open_hunk, repairs)
        else:
            open_hunk = None
            _check_outside(line, bool(hunks), path, repairs)
    if named > 1:
        raise EditRejected("many_files", f"the diff has {named} file headers, one is allowed")
    if not named:
        repairs.append("missing_header")
    return _checked(hunks, repairs), list(dict.fromkeys(repairs))


def place_hunks(source: str, hunks: list[Hunk]) -> tuple[str, list[str]]:
    """Return the source with the hunks applied where their old lines stand, nearest to where they say, and the repairs.

    EditRejected context_not_found, ambiguous_context (several places, and no line number to choose by) or overlap.
    """
    lines, repairs = split_lines(source), []
    placed: list[tuple[int, int, list[str]]] = []
    for hunk in hunks:
        at, loose = _locate(hunk, lines)
        if loose:
            repairs.append("trailing_whitespace")
        if hunk.start is not None and at != (hunk.start - 1 if hunk.old else hunk.start):
            repairs.append("line_numbers")
        placed.append((at, at + len(hunk.old), _new_lines(hunk, lines[at : at + len(hunk.old)])))
    placed.sort(key=lambda each: each[:2])
    for (_, end, _), (start, _, _) in zip(placed, placed[1:], strict=False):
        if start < end:
            raise EditRejected("overlap", f"two hunks change line {start + 1}")
    for start, end, new in reversed(placed):
        lines[start:end] = new
    return "\n".join(lines), list(dict.fromkeys(repairs))


# --- reading ----------------------------------------------------------------------------------------------------------


def _open_hunk(line: str, repairs: list[str]) -> Hunk:
    found = _HUNK.match(line)
    if not found:
        repairs.append("hunk_header")
        return Hunk(None, None)
    old, new = (1 if found[group] is None else int(found[group]) for group in (2, 4))
    return Hunk(int(found[1]), (old, new))


def _expects(hunk: Hunk, line: str) -> bool:
    """A context line of the source never begins with @@: it has its space."""
    return False


def _belongs(line: str, hunk: Hunk, known: set[str]) -> bool:
    if hunk.complete:
        return line.startswith("\\")
    if line[:1] in (" ", "+", "-", "\\"):
        return True
    # A blank context line whose space was trimmed, or one that lost it: a line of the source, to the letter.
    return not line.strip() or line in known


def _add(line: str, hunk: Hunk, repairs: list[str]) -> None:
    if line.startswith("\\"):
        return  # "no newline at end of file": the source's own ending stands
    if line[:1] in (" ", "+", "-"):
        hunk.body.append(line)
        return
    hunk.body.append(" " + line)
    repairs.append("lost_space")


def _check_outside(line: str, after_a_hunk: bool, path: str, repairs: list[str]) -> None:
    """Judge a line that is no part of a hunk: git's headers, talk, or a change that nobody would see applied."""
    for pattern, code, what in _REFUSED:
        if pattern.match(line):
            raise EditRejected(code, f"the diff {what}: {one_line(line, 80)}")
    if line.startswith("diff --git "):
        for name in re.findall(r'"?\b[ab]/[^\s"]+|(?<=\s)/\S+|\S*\.\./\S*', line):
            _check_name(name, path, repairs)
    elif line.startswith(("--- ", "+++ ")):
        _check_name(line[4:], path, repairs)
        repairs.append("missing_header")
    elif line.startswith("```"):
        repairs.append("code_fence")
    elif after_a_hunk and line[:1] in ("+", "-") and line.strip("-+ "):
        raise EditRejected("stray_lines", f"a changed line stands outside every hunk: {one_line(line, 80)}")
    elif line.strip() and not line.startswith("index "):
        repairs.append("talk")


def _check_name(name: str, path: str, repairs: list[str]) -> None:
    name = name.split("\t")[0].strip().strip('"')
    if name == "/dev/null":
        raise EditRejected("new_file", "the diff adds or deletes a file (/dev/null)")
    if name.startswith(("/", "~", "\\")) or re.match(r"^[A-Za-z]:", name):
        raise EditRejected("absolute_path", f"the diff names an absolute path: {one_line(name, 80)}")
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise EditRejected("outside_path", f"the diff names a path outside: {one_line(name, 80)}")
    bare = name[2:] if name.startswith(("a/", "b/")) else name
    if bare == path and bare != name:
        return
    if bare not in (path, PurePosixPath(path).name):
        raise EditRejected("other_file", f"the diff touches {one_line(bare, 80)}; only {path} may change")
    repairs.append("file_name")


def _checked(hunks: list[Hunk], repairs: list[str]) -> list[Hunk]:
    if not hunks:
        raise EditRejected("no_hunks", "the diff holds no hunk")
    for hunk in hunks:
        while not hunk.complete and hunk.body and not hunk.body[-1].strip():
            hunk.body.pop()  # blank lines after a diff are talk, not context
        if all(line[0] == " " for line in hunk.body):
            raise EditRejected("empty_hunk", "a hunk adds and removes nothing")
        if hunk.counts is not None and not hunk.complete:
            repairs.append("counts")
    return hunks


# --- placing ----------------------------------------------------------------------------------------------------------


def _locate(hunk: Hunk, lines: list[str]) -> tuple[int, bool]:
    if not hunk.old:
        if hunk.start is None or hunk.start > len(lines):
            raise EditRejected("context_not_found", "a hunk only adds lines and does not say where")
        return hunk.start, False
    places, loose = find_run(lines, hunk.old)
    quote = one_line(next((line for line in hunk.old if line.strip()), ""), 60)
    if not places:
        raise EditRejected("context_not_found", f"the source has no such lines: {quote}")
    if hunk.start is None:
        if len(places) > 1:
            raise EditRejected("ambiguous_context", f"a hunk without line numbers fits {len(places)} places: {quote}")
        return places[0], loose
    told = hunk.start - 1
    return min(places, key=lambda place: abs(place - told)), loose


def _new_lines(hunk: Hunk, standing: list[str]) -> list[str]:
    """The hunk's new lines, with context as the source has it, not as the diff tells it."""
    source: Iterator[str] = iter(standing)
    new: list[str] = []
    for line in hunk.body:
        if line[0] == "+":
            new.append(line[1:])
            continue
        own = next(source)
        if line[0] == " ":
            new.append(own)
    return new
