"""The policy's language: SEARCH/REPLACE blocks.

    <<<<<<< SEARCH
    MUON_LR = 2e-3  # peak learning rate of the matrices
    =======
    MUON_LR = 2.8e-3  # peak learning rate of the matrices
    >>>>>>> REPLACE

Each marker is a whole line. SEARCH is a run of whole lines that stands exactly once in the source; several blocks apply
in turn, each to what the one before left. An empty REPLACE deletes. Text around the blocks is talk and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arl_core.edit.places import find_run, split_lines
from arl_core.errors import EditRejected
from arl_core.records import one_line

OPEN, MIDDLE, CLOSE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"


@dataclass(frozen=True)
class Block:
    """Two runs of whole lines, each ending in a newline when not empty."""

    search: str
    replace: str


def parse_blocks(text: str) -> list[Block]:
    """Return the blocks of a completion. EditRejected no_blocks, malformed_blocks or empty_search."""
    blocks: list[Block] = []
    search: list[str] = []
    replace: list[str] = []
    outside, in_search, in_replace = range(3)
    state = outside
    for number, line in enumerate(split_lines(text), start=1):
        if line in (OPEN, MIDDLE, CLOSE):
            if line != (OPEN, MIDDLE, CLOSE)[state]:
                raise EditRejected("malformed_blocks", f"line {number} of the completion: {line!r} is out of place")
            if line == CLOSE:
                blocks.append(Block(_text(search), _text(replace)))
                search, replace = [], []
            state = (state + 1) % 3
        elif state == in_search:
            search.append(line)
        elif state == in_replace:
            replace.append(line)
    if state != outside:
        raise EditRejected("malformed_blocks", "the last block has no end")
    if not blocks:
        raise EditRejected("no_blocks", "the completion holds no SEARCH/REPLACE block")
    if not all(block.search.strip() for block in blocks):
        raise EditRejected("empty_search", "SEARCH must name at least one line that is not blank")
    return blocks


def apply_blocks(source: str, blocks: Sequence[Block]) -> str:
    """Return the source after all blocks. EditRejected search_not_found or ambiguous_search."""
    return place_blocks(source, blocks)[0]


def place_blocks(source: str, blocks: Sequence[Block]) -> tuple[str, tuple[str, ...]]:
    """Like apply_blocks(), with the repairs that were needed: forgiven trailing whitespace."""
    lines, repairs = split_lines(source), []
    for block in blocks:
        wanted = split_lines(block.search.removesuffix("\n"))
        if not block.search.strip():
            raise EditRejected("empty_search", "SEARCH must name at least one line that is not blank")
        places, loose = find_run(lines, wanted)
        quote = one_line(next(line for line in wanted if line.strip()), 60)
        if not places:
            raise EditRejected("search_not_found", f"SEARCH is not in the source: {quote}")
        if len(places) > 1:
            raise EditRejected("ambiguous_search", f"SEARCH stands {len(places)} times in the source: {quote}")
        if loose:
            repairs.append("trailing_whitespace")
        replace = split_lines(block.replace.removesuffix("\n")) if block.replace else []
        lines[places[0] : places[0] + len(wanted)] = replace
    return "\n".join(lines), tuple(dict.fromkeys(repairs))


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)
