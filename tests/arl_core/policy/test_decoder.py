"""What an edit may become, token by token, whoever draws the tokens."""

from __future__ import annotations

import ast
import copy
import io
import itertools
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arl_core.errors import PolicyError
from arl_core.policy.decoder import MIDDLE, OPEN, RESERVE_TOKENS, EditDecoder, Vocabulary
from arl_core.policy.policy import Policy
from arl_core.policy.searchable import searchable_runs
from arl_core.policy.tiny import tiny_tokenizer
from tests.arl_core.policy.conftest import PROMPT, SOURCE, tiny

TARGET = (Path(__file__).resolve().parents[3] / "target" / "train.py").read_text(encoding="utf-8")
CONSTANTS = """DEPTH = 4  # blocks
RATE = 0.5 # one space is a comment too
BETAS = (0.8, 0.95)  # memory
"""
COMPOUND = """LIMIT = 3  # rounds


def choose(x, y):
    if x > LIMIT:
        y = x
    elif x > 1:
        y = 2 * x
    else:
        y = 0
    try:
        y = int(y)
    except ValueError:
        y = 1
    finally:
        x = y
    for i in range(3):
        x = x + i
    else:
        x = 0
    while y > LIMIT:
        y = y - 1
    else:
        y = LIMIT
    with open(x) as z:
        x = z
    match x:
        case 1:
            y = 3
        case _:
            y = 4
    if x: y = 5
    else: y = 6
    return y
"""


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """The tiny model's, and tokens that larger ones have: several signs and a line's end in one."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([")\n", "):\n"])
    return Vocabulary(tokenizer, len(tokenizer))


def say(decoder: EditDecoder, text: str, vocabulary: Vocabulary) -> None:
    """Take a text byte by byte, as one way to spell it."""
    for byte in text.encode():
        decoder.take(vocabulary.pieces.index(bytes([byte])))


def begun(source: str, search: str, vocabulary: Vocabulary, **changes: object) -> EditDecoder:
    """An edit that has chosen its lines and may write what they become."""
    decoder = EditDecoder(source, vocabulary, tiny(**{"max_new_tokens": 400, "max_blocks": 1, **changes}))
    say(decoder, f"{OPEN}{search}{MIDDLE}\n", vocabulary)
    assert decoder.phase == "replace"
    return decoder


def by_chance(decoder: EditDecoder, rng: np.random.Generator, before_closing: int = 40) -> EditDecoder:
    """Draw the rest evenly from the masks; closing time comes after that many draws."""
    for draw in itertools.count():
        decoder.forced()
        if decoder.done or decoder.left <= 0:
            break
        if draw == before_closing:
            most = min(decoder.settings.max_new_tokens, len(decoder.tokens) + RESERVE_TOKENS)
            decoder.settings = decoder.settings.model_copy(update={"max_new_tokens": most})
        decoder.take(int(rng.choice(np.flatnonzero(decoder.allowed()))))
    return decoder


def applied(source: str, decoder: EditDecoder) -> str:
    for block in decoder.blocks:
        assert ("\n" + source).count("\n" + block.search) == 1
        source = ("\n" + source).replace("\n" + block.search, "\n" + block.replace, 1)[1:]
    return source


def parse(source: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        ast.parse(source)


def spelled(source: str) -> list[str]:
    """A program as its words, without comments."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]


# --- no edit is void --------------------------------------------------------------------------------------------------


def test_an_edit_of_constants_changes_the_program_and_not_only_its_comments(load: Callable[..., Policy]) -> None:
    policy = load(max_new_tokens=96, max_blocks=1)  # closing time from the start: short values
    for rollout in policy.propose_many([PROMPT] * 32, ["DEPTH = 4  # blocks\n"] * 32, range(32)):
        for block in rollout.blocks:
            assert spelled(block.search) != spelled(block.replace)


def test_no_edit_of_constants_is_void_when_their_old_values_are_half_written(vocabulary: Vocabulary) -> None:
    rng, ended = np.random.default_rng(0), 0
    for run in searchable_runs(CONSTANTS, 3) * 20:
        decoder = begun(CONSTANTS, run.text, vocabulary)
        old = run.text.split(" #")[0].rstrip()
        say(decoder, old[: rng.integers(len(old) - 1, len(old) + 1)], vocabulary)
        by_chance(decoder, rng)
        ended += decoder.done
        if decoder.done:
            assert spelled(applied(CONSTANTS, decoder)) != spelled(CONSTANTS)
    assert ended > 60


@pytest.mark.parametrize(
    ("search", "old"),
    [
        ("DEPTH = 4  # blocks\n", "DEPTH = 4"),
        ("RATE = 0.5 # one space is a comment too\n", "RATE = 0.5"),
        ("BETAS = (0.8, 0.95)  # memory\n", "BETAS = (0.8, 0.95)"),
        ("DEPTH = 4  # blocks\nRATE = 0.5 # one space is a comment too\n", "DEPTH = 4\nRATE = 0.5"),
    ],
)
def test_a_constant_that_has_its_old_value_can_only_go_on(search: str, old: str, vocabulary: Vocabulary) -> None:
    decoder = begun(CONSTANTS, search, vocabulary)
    say(decoder, old, vocabulary)
    assert decoder.forced() == []
    pieces = [vocabulary.pieces[token] for token in np.flatnonzero(decoder.allowed())]
    assert pieces
    assert not [piece for piece in pieces if b"\n" in piece or b"#" in piece]


def test_no_single_token_ends_both_the_old_value_and_its_line(vocabulary: Vocabulary) -> None:
    joined = vocabulary.pieces.index(b")\n")
    decoder = begun(CONSTANTS, "BETAS = (0.8, 0.95)  # memory\n", vocabulary)
    say(decoder, "BETAS = (0.8, 0.95", vocabulary)
    assert not decoder.allowed()[joined]
    say(decoder, "1", vocabulary)
    assert decoder.allowed()[joined]


def test_a_header_that_says_what_it_said_cannot_end(vocabulary: Vocabulary) -> None:
    decoder = begun(SOURCE, "        for _ in range(DEPTH):\n", vocabulary)
    say(decoder, "        for _ in range(DEPTH", vocabulary)
    assert not decoder.allowed()[vocabulary.pieces.index(b"):\n")]
    say(decoder, ")", vocabulary)
    assert not decoder.allowed()[vocabulary.pieces.index(b":")]
    assert decoder.allowed().any()


def test_a_run_that_fills_every_line_cannot_be_written_again(vocabulary: Vocabulary) -> None:
    decoder = begun(SOURCE, "            x = torch.relu(x)\n", vocabulary, max_replace_lines=1)
    say(decoder, "            x = torch.relu(x)", vocabulary)
    assert not decoder.allowed()[vocabulary.pieces.index(b"\n")]
    free = begun(SOURCE, "            x = torch.relu(x)\n", vocabulary, max_replace_lines=2)
    say(free, "            x = torch.relu(x)\n", vocabulary)
    assert not free.allowed()[vocabulary.to_marker_V].any()


def test_lost_documentation_is_no_edit(vocabulary: Vocabulary) -> None:
    source = 'def f(x):\n    """Say it."""\n\n    # and do it\n    return x\n'
    decoder = begun(source, '    """Say it."""\n\n    # and do it\n    return x\n', vocabulary, max_search_lines=4)
    say(decoder, "    return x\n", vocabulary)
    assert not decoder.allowed()[vocabulary.to_marker_V].any()


# --- what does not end does not harm ----------------------------------------------------------------------------------


class Failing:
    """llguidance's matcher that meets a limit of its own when it is asked for a mask, or fed a token."""

    def __init__(self, matcher: Any, when: str) -> None:
        self._matcher, self._when, self._failed = matcher, when, False

    def is_error(self) -> bool:
        return self._failed

    def get_error(self) -> str:
        return "too many items"

    def compute_ff_tokens(self) -> list[int]:
        return [] if self._when == "masked" else list(self._matcher.compute_ff_tokens())

    def unsafe_compute_mask_ptr(self, *where: int) -> None:
        self._failed |= self._when == "masked"
        self._matcher.unsafe_compute_mask_ptr(*where)

    def consume_token(self, token: int) -> bool:
        self._failed |= self._when == "fed"
        return not self._failed and bool(self._matcher.consume_token(token))

    def is_stopped(self) -> bool:
        return self._failed or bool(self._matcher.is_stopped())


def failing_grammar(monkeypatch: pytest.MonkeyPatch, which: int, when: str) -> None:
    """Let the grammar number `which` of each edit fail; 0 is that of its first SEARCH."""
    begin, begun = EditDecoder._begin, Counter[EditDecoder]()

    def failing(self: EditDecoder, phase: str, grammar: str) -> None:
        fails = begun[self] == which
        begun[self] += 1
        begin(self, phase, "start: (" if fails and when == "built" else grammar)
        if fails and when != "built":
            self._matcher = Failing(self._matcher, when)

    monkeypatch.setattr(EditDecoder, "_begin", failing)


@pytest.mark.parametrize("when", ["built", "masked", "fed"])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_an_edit_that_meets_a_limit_of_the_grammar_ends_alone_and_keeps_its_blocks(
    which: int, when: str, load: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "DEPTH = 4  # blocks\nMUON_LR = 2e-3  # peak step\n"
    policy = load(max_new_tokens=240)
    whole = policy.propose_many([PROMPT] * 6, [source] * 6, range(6))
    failing_grammar(monkeypatch, which, when)
    broken = policy.propose_many([PROMPT] * 6, [source] * 6, range(6))
    kept = which // 2  # blocks that were complete by then
    cut = 0
    for before, after in zip(whole, broken, strict=True):
        assert after.blocks == before.blocks[: len(after.blocks)]
        assert len(after.logprobs_T) == len(after.completion_ids)
        if not after.ended and before.ended:
            cut += 1
            assert len(after.blocks) == kept
    assert cut


@pytest.mark.parametrize("when", ["built", "masked", "fed"])
def test_a_source_whose_own_grammar_fails_is_an_error(
    when: str, shared_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_grammar(monkeypatch, 0, when)
    with pytest.raises(PolicyError, match="grammar of the source to edit fails"):
        shared_policy.propose(PROMPT, SOURCE, seed=0)


# --- every edit parses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "times"), [("    ", 8), ("  ", 3), ("\t", 3)])
def test_every_edit_of_compound_statements_parses(unit: str, times: int, vocabulary: Vocabulary) -> None:
    """Hundreds of edits drawn evenly from the masks, of each run that SEARCH may name, whatever the file indents with."""
    source = COMPOUND.replace("    ", unit)
    rng, ended = np.random.default_rng(0), 0
    runs = searchable_runs(source, 3)
    for run in runs * times:
        decoder = by_chance(begun(source, run.text, vocabulary), rng)
        ended += decoder.done
        if decoder.done:
            parse(applied(source, decoder))
            assert spelled(applied(source, decoder)) != spelled(source)
    assert len(runs) > 20
    assert ended > 0.7 * times * len(runs)


def test_uppercase_locals_are_no_constants(vocabulary: Vocabulary) -> None:
    line = "        T = tokens_BT.size(1)\n"
    rng, ended = np.random.default_rng(0), 0
    for _ in range(20):
        decoder = by_chance(begun(TARGET, line, vocabulary), rng)
        ended += decoder.done
        if decoder.done:
            parse(applied(TARGET, decoder))
    assert ended > 10
    decoder = begun(TARGET, line, vocabulary)
    say(decoder, "        T = tokens_BT.size(0)\n>>>>>>> REPLACE", vocabulary)
    assert len(decoder.blocks) == 1


def test_lines_are_counted_as_python_counts_them(vocabulary: Vocabulary) -> None:
    source = 'NAME = "a\u2028b"\n\x0c\nDEPTH = 4\nWIDTH = 8\n'
    decoder = begun(source, "DEPTH = 4\n", vocabulary, max_blocks=2)
    say(decoder, "DEPTH = 5\n>>>>>>> REPLACE", vocabulary)
    assert decoder.source == source.replace("4", "5")
    say(decoder, f"\n{OPEN}WIDTH = 8\n{MIDDLE}\nWIDTH = 9\n>>>>>>> REPLACE", vocabulary)
    assert decoder.source == applied(source, decoder) == source.replace("4", "5").replace("8", "9")
