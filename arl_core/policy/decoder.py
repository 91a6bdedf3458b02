"""The state machine that keeps one edit valid while it is sampled.

Phases: `search` (choose a run of existing lines) → `replace` (what they become) → `after` (stop, or open another block
and search) → `replace` … → `end` (only the end token is left) → `done`. Each phase has a grammar of its own, built when
it begins, because what REPLACE may be depends on what SEARCH chose, and the second block searches the source as the
first left it.

Three rules narrow the grammar's mask further; the narrowed mask is the one that is sampled from and stored, so PPO sees
the exact distribution:
1. No void edit: where REPLACE so far says what SEARCH says (comments aside), it may neither end nor turn to a comment;
   it may go on, on the line or with another. Where no other line may follow, it may not even end the line.
2. Closing time: with few tokens left, tokens that close (quotes, brackets, line, block) go first, then those that open
   nothing.
3. No second block without room for one.

llguidance has limits per step, which a rare text meets. Such an edit breaks off: it is not done, nothing is left to write, its
complete blocks stay.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arl_core.errors import PolicyError
from arl_core.policy.names import names_at
from arl_core.policy.python_lines import HEADERS, replace_grammar
from arl_core.policy.rollout import EditBlock
from arl_core.policy.searchable import (
    Run,
    comments_of,
    constants_of,
    lines_of,
    plain_constants,
    searchable_runs,
    wholes_of,
)
from arl_core.policy.settings import PolicySettings

OPEN, MIDDLE, CLOSE = "<<<<<<< SEARCH\n", "=======", ">>>>>>> REPLACE"
RESERVE_TOKENS = 48  # enough to close what is open, the last marker included
ROOM_FOR_BLOCK = 96  # tokens that another block needs: two markers, three lines to find, one to write
OPENERS = re.compile(rb"[(\[{\"':#]|lambda|if|for")
OPERATORS = re.compile(rb" ?[-.,*/+%@<>=!&|]| (?!=)")
CLOSERS = re.compile(rb"[)\]}]*\n?")
ENDS = re.compile(rb"[:\n#]")  # after one of these, a statement can say nothing more


class Vocabulary:
    """What the decoder asks of a tokenizer: bytes of each token, the end token, llguidance's own view."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        import llguidance.hf

        self.size = size
        self.end_id = int(tokenizer.eos_token_id)
        self.guide = llguidance.hf.from_tokenizer(tokenizer, n_vocab=size)
        self.pieces: list[bytes] = [self.guide.decode_bytes([i]) for i in range(size)]
        self.closers_V = self._where(lambda piece: piece != b"" and CLOSERS.fullmatch(piece) is not None)
        self.header_end_V = self._where(lambda piece: piece in (b":", b"):", b":\n", b"):\n"))
        self.no_openers_V = self._where(lambda piece: OPENERS.search(piece) is None)
        self.no_operators_V = self.no_openers_V & self._where(lambda piece: OPERATORS.match(piece) is None)
        self.line_end_V = self._where(lambda piece: piece == b"\n")
        self.quotes_V = {quote: self._starting(quote.encode()) for quote in "\"'"}
        self.to_comment_V = self._where(self._turns_to_comment)
        self.ends_V = self._where(lambda piece: ENDS.search(piece) is not None)
        self.to_marker_V = self._starting(b">")

    def _where(self, holds: Callable[[bytes], bool]) -> NDArray[np.bool_]:
        return np.array([holds(piece) for piece in self.pieces])

    def _starting(self, start: bytes) -> NDArray[np.bool_]:
        return self._where(lambda piece: piece.startswith(start))

    def closing(self, line: str) -> list[NDArray[np.bool_]]:
        """Return masks to try in turn when the edit must come to its end, given the present line so far."""
        if not line:
            return [self.to_marker_V]
        inside = _open_quote_or_comment(line)
        if inside == "#":
            return [self.line_end_V]
        if inside:
            return [self.quotes_V[inside]]
        return [self.closers_V, self.header_end_V, self.no_operators_V, self.no_openers_V]

    @staticmethod
    def _turns_to_comment(piece: bytes) -> bool:
        rest = piece.lstrip(b" ")
        return bool(piece) and (not rest or rest[:1] == b"#")


@functools.lru_cache(maxsize=8)
def _runs(source: str, max_lines: int) -> tuple[Run, ...]:
    ast.parse(source)  # raises SyntaxError: names.py needs the tree
    return tuple(searchable_runs(source, max_lines))


def _bare(text: str) -> str:
    """Return code without trailing comments and spaces, line by line (a # inside a string counts as a comment here)."""
    return "\n".join(line.split(" #")[0].rstrip() for line in text.strip("\n").split("\n"))


def _open_quote_or_comment(line: str) -> str:
    """Return the quote that is open at the end of a line, "#" inside a comment, "" in plain code."""
    inside = ""
    for char in line:
        if inside:
            inside = "" if char == inside else inside
        elif char in "\"'#":
            inside = char
    return inside


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


class EditDecoder:
    """Says at each step which tokens may come next, and collects the blocks.

    Raises PolicyError when the source offers nothing to search (it does not parse, is empty, or its runs are beyond the
    grammar's limits).
    """

    def __init__(self, source: str, vocabulary: Vocabulary, settings: PolicySettings) -> None:
        self.vocabulary, self.settings = vocabulary, settings
        self.source = source
        self.blocks: list[EditBlock] = []
        self._written = [False] * len(lines_of(source))  # by a block of this edit: none takes it back
        self.tokens: list[int] = []
        self.phase = ""
        self.run: Run | None = None
        self._text = b""  # bytes of the present phase
        self._enter_search(first=True)

    @property
    def done(self) -> bool:
        return self.phase == "done"

    @property
    def left(self) -> int:
        return 0 if self.phase == "broken" else self.settings.max_new_tokens - len(self.tokens)

    def allowed(self) -> NDArray[np.bool_]:
        """Return the mask over the vocabulary, [V]. At least one token is allowed while any is left to write."""
        none_V: NDArray[np.bool_] = np.zeros(self.vocabulary.size, dtype=bool)
        if self.phase == "broken":
            return none_V
        if self.phase == "end":
            end_V: NDArray[np.bool_] = np.arange(self.vocabulary.size) == self.vocabulary.end_id
            return end_V
        allowed_V: NDArray[np.bool_] = self._grammar_mask()
        if self._matcher.is_error() or not allowed_V.any():  # after an error its mask is the end token
            self._break_off("it allows no token")
            return none_V
        return self._narrow(allowed_V) if self.phase == "replace" else allowed_V

    def forced(self) -> list[int]:
        """Return tokens that must follow whatever the policy thinks; they are taken at once, without a forward pass."""
        taken: list[int] = []
        while not self.done and self.left > 0:
            ahead = [] if self.phase == "end" else list(self._matcher.compute_ff_tokens())
            if not ahead:
                allowed_V = self.allowed()
                if np.count_nonzero(allowed_V) != 1:
                    break
                ahead = [int(allowed_V.argmax())]
            for token in ahead[: self.left]:
                self.take(token)
                taken.append(token)
                if self.done or self.left <= 0:
                    break
        return taken

    def take(self, token: int) -> None:
        """Consume one token and move to the next phase when the present one is complete."""
        self.tokens.append(token)
        if token == self.vocabulary.end_id and self.phase in ("after", "end"):
            self.phase = "done"
            return
        if not self._matcher.consume_token(token):
            self._break_off(f"token {token} is outside")
            return
        self._text += self.vocabulary.pieces[token]
        if self._matcher.is_stopped():
            self._advance()

    def text(self) -> str:
        """Return the completion as text, with a final newline; the end token says nothing."""
        shown = [t for t in self.tokens if t != self.vocabulary.end_id]
        return b"".join(self.vocabulary.pieces[t] for t in shown).decode("utf-8", "replace") + "\n"

    # --- phases -------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        text = self._text.decode("utf-8", "replace")
        if self.phase in ("search", "after"):
            search = text.split(OPEN, 1)[1].removesuffix(MIDDLE)
            self.run = next(run for run in self._candidates if run.text == search)
            self._enter_replace(self.run)
            return
        assert self.run is not None
        replace = text.removeprefix("\n").removesuffix(CLOSE)
        self.blocks.append(EditBlock(self.run.text, replace))
        lines = lines_of(self.source)
        end = self.run.first + self.run.text.count("\n")
        self.source = "".join(lines[: self.run.first]) + replace + "".join(lines[end:])
        self._written[self.run.first : end] = [True] * replace.count("\n")
        self._enter_search(first=False)

    def _enter_search(self, first: bool) -> None:
        room = first or (len(self.blocks) < self.settings.max_blocks and self.left > ROOM_FOR_BLOCK)
        self._candidates: tuple[Run, ...] = ()
        if room:
            try:
                found = _runs(self.source, self.settings.max_search_lines)
                self._candidates = tuple(one for one in found if not self._wrote(one))
            except (SyntaxError, ValueError) as error:
                if first:
                    raise PolicyError(
                        f"the source to edit is not Python: {error}; mend it, or start anew (--fresh)"
                    ) from error
        if first and not self._candidates:
            raise PolicyError(
                "the source to edit has no line that SEARCH could name; set policy.max_search_lines higher, or edit another file"
            )
        if not self._candidates:
            self.phase = "end"
            return
        choices = " | ".join(json.dumps(run.text) for run in self._candidates)
        body = f"{json.dumps(OPEN if first else chr(10) + OPEN)} SEARCH {json.dumps(MIDDLE)}"
        self._begin("search" if first else "after", f"start: {body if first else f'({body})?'}\nSEARCH: {choices}\n")

    def _wrote(self, run: Run) -> bool:
        return any(self._written[run.first : run.first + run.text.count("\n")])

    def _enter_replace(self, run: Run) -> None:
        constants: tuple[str, ...] = ()
        if self.settings.replace == "text":
            line = r"/[^\n\r<=>][^\n\r]{0,119}\n/"
            grammar = f'start: "\\n" LINE{{0,{self.settings.max_replace_lines}}} ">>>>>>> REPLACE"\nLINE: {line}\n'
        else:
            if not run.depth:  # what is UPPERCASE further in is a local that code computes
                constants = constants_of(run.text, plain_constants(self.source))
            lines = lines_of(self.source)
            without = "".join(lines[: run.first]) + "".join(lines[run.first + run.text.count("\n") :])
            last = run.first + run.text.count("\n") - 1
            grammar = replace_grammar(
                names_at(self.source, run.first, last),
                run.depth,
                run.unit,
                run.header,
                comments=comments_of(run.text),
                constants=constants,
                wholes=wholes_of(run.text),
                in_function=run.in_function,
                in_loop=run.in_loop,
                empty=not run.header and _compiles(without),
                lines=self.settings.max_replace_lines,
            )
        full = run.text.count("\n") >= self.settings.max_replace_lines
        self._nothing_follows = bool(run.header or constants) or full
        self._begin("replace", grammar)

    def _begin(self, phase: str, grammar: str) -> None:
        from llguidance import LLMatcher

        self.phase, self._text = phase, b""
        self._matcher = LLMatcher(self.vocabulary.guide, LLMatcher.grammar_from_lark(grammar))
        if self._matcher.is_error():
            self._break_off("it does not build")

    def _break_off(self, why: str) -> None:
        """End the edit where it is. In the first grammar it is the source that is at fault, and so would be every edit."""
        if self.phase == "search":
            raise PolicyError(
                f"the grammar of the source to edit fails: {why}; {self._matcher.get_error()}. Set a smaller "
                "policy.max_search_lines, or start anew from a shorter source (--fresh)"
            )
        self.phase = "broken"

    # --- masks --------------------------------------------------------------------------------------------------------

    def _grammar_mask(self) -> NDArray[np.bool_]:
        packed = np.zeros((self.vocabulary.size + 31) // 32, dtype=np.int32)
        self._matcher.unsafe_compute_mask_ptr(packed.ctypes.data, packed.nbytes)
        bits = np.unpackbits(packed.view(np.uint8), bitorder="little")[: self.vocabulary.size]
        allowed_V: NDArray[np.bool_] = bits.astype(bool)
        return allowed_V

    def _narrow(self, allowed_V: NDArray[np.bool_]) -> NDArray[np.bool_]:
        assert self.run is not None
        text = self._text.decode("utf-8", "replace").removeprefix("\n")
        old = _bare(self.run.code)
        if text and _bare(text) == old:
            banned_V = self.vocabulary.to_marker_V if text.endswith("\n") else self.vocabulary.to_comment_V
            allowed_V = _unless_empty(allowed_V & ~banned_V, allowed_V)
        if self._nothing_follows and old.startswith(_bare(text)):
            void_V = np.zeros_like(allowed_V)
            for token in np.flatnonzero(allowed_V & self.vocabulary.ends_V):
                void_V[token] = _bare(text + self.vocabulary.pieces[token].decode("utf-8", "replace")) == old
            allowed_V = _unless_empty(allowed_V & ~void_V, allowed_V)
        if self.left > RESERVE_TOKENS:
            return allowed_V
        line = text.rpartition("\n")[2]
        for closing_V in [*self._header_first(line), *self.vocabulary.closing(line)]:
            if (allowed_V & closing_V).any():
                return allowed_V & closing_V
        return allowed_V

    def _header_first(self, line: str) -> list[NDArray[np.bool_]]:
        """Return the mask that turns a line towards the header that must end the text, while it still can."""
        assert self.run is not None
        if not self.run.header:
            return []
        target = (self.run.unit * self.run.depth + HEADERS[self.run.header].split('"')[1]).encode()
        rest = target[len(line) :]
        if not rest or not target.startswith(line.encode()):
            return []
        return [np.array([piece != b"" and rest.startswith(piece) for piece in self.vocabulary.pieces])]


def _unless_empty(narrowed_V: NDArray[np.bool_], otherwise_V: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return narrowed_V if narrowed_V.any() else otherwise_V
