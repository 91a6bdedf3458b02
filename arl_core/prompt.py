"""The policy's prompt, fitted to its context by a stated rule.

Sections in order: agenda, best so far, last run, history (top and recent), source, task. The rule of fitting:

1. The task and the best-so-far line are always whole.
2. The agenda gets at most 20 % of the tokens, cut at a line.
3. The source's constants are kept room for next, up to 60 % of what the agenda leaves: who moves one must see where all stand.
4. The history gets at most 35 %, cut at a line. The oldest recent experiments go first; when no more recent ones are left
   than top ones, both go by turns: what was just tried is as worth knowing as what was best.
5. The source gets what remains. When it does not fit whole, the constants come first, then the definitions in
   file order, beginning with one that moves on with every experiment, so that in time each part is seen. What is
   left out is marked, constants too.

Everything that candidates wrote (reasons, summaries) is data: one line each, printable characters only, cut short; a reason
is quoted. What they print never comes here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arl_core.records import one_line
from frozen_env.constants import constant_statements
from frozen_env.contract import Direction, Status
from frozen_env.description import built_in
from frozen_env.files import is_marked

AGENDA_SHARE = 0.20
CONSTANTS_SHARE = 0.60
HISTORY_SHARE = 0.35
LINE_CHARS = 110
REASON_CHARS = 60
LEFT_OUT = "# ..."
TASK = """## Task
Propose one edit of the source above that lowers the metric: change architecture, schedule, optimizer, initialisation or
constants. Answer with SEARCH/REPLACE blocks: SEARCH repeats lines of the source exactly, REPLACE is what they become.
"""
TASK_HIGHER = TASK.replace("lowers", "raises")

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class PastExperiment:
    """What the prompt tells of one experiment."""

    index: int
    status: Status
    summary: str
    value: float | None = None
    estimate: float | None = None
    reason: str = ""
    confirmed_value: float | None = None  # mean over `confirmations` fresh seeds
    confirmations: int = 0

    @property
    def best_estimate(self) -> float | None:
        """The mean over fresh seeds, else the single run, else the forecast."""
        if self.confirmations and self.confirmed_value is not None:
            return self.confirmed_value
        return self.value if self.value is not None else self.estimate


@dataclass(frozen=True)
class PromptInput:
    """All that a prompt is made of; `recent` newest first, `top` best first."""

    agenda: str
    source: str
    metric: str
    direction: Direction
    best: PastExperiment | None
    recent: Sequence[PastExperiment]
    top: Sequence[PastExperiment]
    diagnostics: Sequence[str] = ()
    experiment_index: int = 1
    path: str = built_in().path  # how the source is named
    parent: PastExperiment | None = None  # whose program the source is, where it is not the best one's


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: int
    left_out: tuple[str, ...] = ()


def build_prompt(given: PromptInput, count_tokens: CountTokens, limit_tokens: int) -> Prompt:
    """Return a prompt of at most limit_tokens. Raises ValueError when not even the fixed parts fit."""
    task = TASK if given.direction == "lower" else TASK_HIGHER
    head = _best_section(given)
    fixed_tokens = count_tokens(head) + count_tokens(task)
    room = limit_tokens - fixed_tokens
    if room < 0:
        raise ValueError(
            f"policy.prompt_tokens = {limit_tokens} cannot hold the fixed parts of the prompt ({fixed_tokens} tokens)"
        )
    left_out: list[str] = []
    agenda = _cut_lines(_section("Agenda", given.agenda.strip()), count_tokens, int(room * AGENDA_SHARE))
    if len(agenda.strip()) < len(given.agenda.strip()):
        left_out.append("agenda cut")
    most = int(room * HISTORY_SHARE)
    room -= count_tokens(agenda)
    kept_free = _source_frame(given, count_tokens) + min(
        count_tokens(_constants_of(given.source)), int(room * CONSTANTS_SHARE)
    )
    history = _history_section(given, count_tokens, min(most, room - kept_free), left_out)
    room -= count_tokens(history)
    source = _source_section(given, count_tokens, room, left_out)
    text = agenda + head + history + source + task
    # Token counts of parts do not add up exactly; the source pays for the difference.
    while (total := count_tokens(text)) > limit_tokens and room > 0:
        room -= max(8, total - limit_tokens)
        source = _source_section(given, count_tokens, room, left_out)
        text = agenda + head + history + source + task
    return Prompt(text, count_tokens(text), tuple(dict.fromkeys(left_out)))


def describe(past: PastExperiment, best: float | None) -> str:
    """One line on one experiment, e.g. `#7 +0.0121: MUON_LR: 0.002 -> 0.004`: how far from the best, and what it did.

    Digits are dear (most tokenizers spend a token on each), so the value itself is told only while there is no best, and
    the usual status, discarded, not at all. A forecast is marked with ~, a mean over n fresh seeds with xn.
    """
    value = past.best_estimate
    status = "" if past.status is Status.DISCARDED else f" {past.status.value}"
    if value is None:
        figure = f' ("{_quoted(past.reason)}")' if past.reason else ""
    else:
        about = "" if past.value is not None else "~"
        runs = f" x{past.confirmations}" if past.confirmations else ""
        figure = f" {about}{value:.4f}{runs}" if best is None else f" {about}{value - best:+.4f}{runs}"
    return f"#{past.index}{status}{figure}: {one_line(past.summary, LINE_CHARS)}"


def _quoted(reason: str) -> str:
    """A candidate's words between quotation marks, which they cannot close: told as what was said, never as ours."""
    return one_line(reason, REASON_CHARS).replace('"', "'")


def _section(title: str, body: str) -> str:
    return f"## {title}\n{body}\n" if body else ""


def _best_section(given: PromptInput) -> str:
    if given.best is None:
        lines = ["no measured experiment yet"]
    else:
        aim = "lower" if given.direction == "lower" else "higher"
        runs = f", mean of {given.best.confirmations} runs" if given.best.confirmations else ""
        lines = [f"{given.metric} {given.best.best_estimate:.4f} by #{given.best.index}{runs} ({aim} is better)"]
    lines += [one_line(line, LINE_CHARS) for line in given.diagnostics]
    return _section("Best so far", "\n".join(lines))


def _history_section(given: PromptInput, count_tokens: CountTokens, room: int, left_out: list[str]) -> str:
    best = given.best.best_estimate if given.best is not None else None
    shown_top = {past.index for past in given.top}
    recent = [describe(past, best) for past in given.recent if past.index not in shown_top]
    top = [describe(past, best) for past in given.top]

    def render() -> str:
        return _section("Best experiments", "\n".join(top)) + _section("Recent experiments", "\n".join(recent))

    while (text := render()) and count_tokens(text) > room:
        (recent if len(recent) > len(top) else top).pop()
        left_out.append("history cut")
    return text


def _source_section(given: PromptInput, count_tokens: CountTokens, room: int, left_out: list[str]) -> str:
    source = given.source
    room -= _source_frame(given, count_tokens)
    if count_tokens(source) > room:
        if count_tokens(_constants_of(source)) > room:
            left_out.append("constants cut")
        source = excerpt(source, count_tokens, room, given.experiment_index)
        left_out.append("source cut")
    return _section(_source_title(given), f"```python\n{source.rstrip()}\n```") if source.strip() else ""


def _source_title(given: PromptInput) -> str:
    if given.parent is None or given.best is None:
        return f"Source of {given.path}"
    value = given.parent.best_estimate
    return f"Source of {given.path} as #{given.parent.index} left it" + (f" ({value:.4f})" if value is not None else "")


def _source_frame(given: PromptInput, count_tokens: CountTokens) -> int:
    """Tokens of a source section besides the source."""
    return count_tokens(_section(_source_title(given), "```python\n```")) + 4


def _constants_of(source: str) -> str:
    """The constants of a source as an excerpt shows them, with the marks of what lies between."""
    return "".join(piece.text + LEFT_OUT + "\n" for piece in _pieces(source) if piece.is_constants)


def excerpt(source: str, count_tokens: CountTokens, room: int, index: int) -> str:
    """Return pieces of the source that fit into `room` tokens, in file order, gaps marked with `# ...`.

    The constants have the first claim, and are cut at a line when they do not fit whole; then the other pieces, whole ones,
    beginning with number `index` modulo their count. A source that does not parse is cut at a line.
    """
    pieces = _pieces(source)
    if not pieces:
        return _cut_lines(source, count_tokens, room)
    order = [i for i, piece in enumerate(pieces) if piece.is_constants]
    others = [i for i, piece in enumerate(pieces) if not piece.is_constants]
    start = index % max(1, len(others))
    chosen: dict[int, str] = {}
    mark_tokens = count_tokens(LEFT_OUT + "\n")
    for i in order + others[start:] + others[:start]:
        text = pieces[i].text
        if count_tokens(text) + mark_tokens > room and (pieces[i].is_constants or not chosen):
            text = _cut_lines(text, count_tokens, room - 2 * mark_tokens)
            text += LEFT_OUT + "\n" if text else ""
        cost = count_tokens(text) + mark_tokens
        if text and cost <= room:
            room -= cost
            chosen[i] = text
    lines: list[str] = []
    for i in range(len(pieces)):
        if i in chosen:
            lines += chosen[i].rstrip("\n").split("\n")
        elif not lines or lines[-1] != LEFT_OUT:
            lines.append(LEFT_OUT)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Piece:
    text: str
    is_constants: bool


def _pieces(source: str) -> list[_Piece]:
    """Cut a source at its top-level definitions; runs of assignments to its constants are the constants block."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = source.splitlines(keepends=True)
    body, constants = module.body, {id(one) for one in constant_statements(module)}
    kinds = [id(node) in constants for node in body]
    starts = [0]
    for i in range(1, len(body)):
        both_constants = kinds[i] and kinds[i - 1]
        both_small = not _is_definition(body[i]) and not _is_definition(body[i - 1]) and kinds[i] == kinds[i - 1]
        if not both_constants and not both_small:
            starts.append(i)
    bounds = [_with_mark(lines, _first_line(body[i])) for i in starts[1:]]
    edges = [0, *bounds, len(lines)]
    return (
        [_Piece("".join(lines[a:b]), kinds[i]) for i, a, b in zip(starts, edges[:-1], edges[1:], strict=True)]
        if body
        else []
    )


def _with_mark(lines: list[str], first: int) -> int:
    """A piece that begins a file begins with the line that says so."""
    above = first
    while above > 0 and (not lines[above - 1].strip() or lines[above - 1].lstrip().startswith("#")):
        above -= 1
        if is_marked(lines[above].rstrip("\n")):
            return above
    return first


def _first_line(node: ast.stmt) -> int:
    """Zero-based first line of a statement, its decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.If)


def _cut_lines(text: str, count_tokens: CountTokens, room: int) -> str:
    """Keep the first lines of a text that fit into `room` tokens."""
    if count_tokens(text) <= room:
        return text
    kept: list[str] = []
    for line in text.splitlines(keepends=True):
        cost = count_tokens(line)
        if cost > room:
            break
        room -= cost
        kept.append(line)
    return "".join(kept)
