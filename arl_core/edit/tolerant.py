"""Read a unified diff that another model or a person wrote: forgiving about form, strict about what it touches.

Repaired, and recorded: Windows line ends, code fences, talk around the diff, missing file headers, a file name without
its folder, hunk headers without numbers, wrong counts, wrong line numbers, blank context lines that lost their space,
trailing whitespace. Refused: anything but changed lines of the one file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from arl_core.edit.places import find_run, split_lines
from arl_core.errors import EditRejected
from arl_core.records import one_line

_HUNK = re.compile(r"^@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_GIT_LINE = re.compile(r"^(diff --git|index|(new|deleted) file mode|(old|new) mode|similarity|rename|copy) ")
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
    lost_space: set[int] = field(default_factory=set)  # body lines whose sign was missing

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
        if line.startswith("@@"):
            open_hunk = _open_hunk(line, repairs)
            hunks.append(open_hunk)
        elif _is_header(line, following, open_hunk):
            named += 1
            _check_name(line, path, repairs)
            _check_name(following[0], path, repairs)
            open_hunk, skip = None, True
        elif open_hunk is not None and _belongs(line, open_hunk, known):
            _add(line, open_hunk)
        else:
            open_hunk = None
            _check_outside(line, bool(hunks), path, repairs)
    if named > 1:
        raise EditRejected("many_files", f"the diff has {named} file headers, one is allowed")
    if not named:
        repairs.append("missing_header")
    return _checked(hunks, repairs), list(dict.fromkeys(repairs))


def parts(text: str) -> list[tuple[str, str]]:
    """Cut a diff of several files at its headers: (name behind +++, part). One part without a name when there is none."""
    lines = split_lines(text)
    starts = [
        i
        for i, line in enumerate(lines[:-2])
        if line.startswith("--- ") and lines[i + 1].startswith("+++ ") and lines[i + 2].startswith("@@")
    ]
    starts = [i - _git_lines_above(lines, i) for i in starts]
    if not starts:
        return [("", text)]
    bounds = [0, *starts[1:], len(lines)]
    found = []
    for first, last in itertools.pairwise(bounds):
        part = lines[first:last]
        header = next(line for line in part if line.startswith("+++ "))
        found.append((header[4:], "\n".join(part) + ("\n" if last < len(lines) else "")))
    return found


def _git_lines_above(lines: list[str], at: int) -> int:
    """How many lines of git's own header stand right above a file header."""
    count = 0
    while at - count > 0 and _GIT_LINE.match(lines[at - count - 1]):
        count += 1
    return count


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
    for (_, end, _), (start, _, _) in itertools.pairwise(placed):
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


def _is_header(line: str, following: list[str], hunk: Hunk | None) -> bool:
    """Tell a file header from a removed line that begins with "-- "."""
    if not line.startswith("--- ") or not following[0].startswith("+++ "):
        return False
    return hunk is None or hunk.complete or following[1].startswith("@@")


def _belongs(line: str, hunk: Hunk, known: set[str]) -> bool:
    if hunk.complete and line in ("-- ", "--"):  # the signature of a mailed patch
        return False
    if line[:1] in (" ", "+", "-", "\\"):  # also past the told counts, which are often wrong
        return True
    # A context line that lost its space: blank, or to the letter a line of the source.
    return not line.strip() or line in known


def _add(line: str, hunk: Hunk) -> None:
    if line.startswith("\\"):
        return  # "no newline at end of file": the source's own ending stands
    if line[:1] in (" ", "+", "-"):
        hunk.body.append(line)
    else:
        hunk.lost_space.add(len(hunk.body))
        hunk.body.append(" " + line)


def _check_outside(line: str, after_a_hunk: bool, path: str, repairs: list[str]) -> None:
    """Judge a line that is no part of a hunk: git's headers, talk, or a change that nobody would see applied."""
    for pattern, code, what in _REFUSED:
        if pattern.match(line):
            raise EditRejected(code, f"the diff {what}: {one_line(line, 80)}")
    if line.startswith("diff --git "):
        for name in line.split()[2:]:
            _check_name(f"--- {name}", path, repairs)
    elif line.startswith(("--- ", "+++ ")):
        _check_name(line, path, repairs)
        repairs.append("missing_header")
    elif line.startswith("```"):
        repairs.append("code_fence")
    elif after_a_hunk and line[:1] in ("+", "-") and line.strip("-+ "):
        raise EditRejected("stray_lines", f"a changed line stands outside every hunk: {one_line(line, 80)}")
    elif line.strip() and not line.startswith("index "):
        repairs.append("talk")


def _check_name(header: str, path: str, repairs: list[str]) -> None:
    name = header[4:].split("\t")[0].strip().strip('"')
    if name == "/dev/null":
        code = "new_file" if header.startswith("---") else "deleted_file"
        raise EditRejected(code, "the diff adds or deletes a file (/dev/null)")
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
        if any(i < len(hunk.body) for i in hunk.lost_space):
            repairs.append("lost_space")
        if hunk.counts is not None and not hunk.complete:
            repairs.append("counts")
    return hunks


# --- placing ----------------------------------------------------------------------------------------------------------


def _locate(hunk: Hunk, lines: list[str]) -> tuple[int, bool]:
    if not hunk.old:
        if hunk.start is None or hunk.start > len(lines) - (not lines[-1]):
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
