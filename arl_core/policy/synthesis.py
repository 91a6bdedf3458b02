"""Synthesises the warm start's examples: sane edits of the present target, in many states of the file, under real prompts.

A state is the target after a few earlier edits, with an invented history that mentions them. For each state there is one
prompt (from arl_core.prompt, as in a campaign) and several different edits, so that the policy learns a broad
distribution over levers and not an answer; none repeats what its prompt says was tried. Values are drawn on each
constant's natural scale: factors for rates and sizes, steps for counts, additive moves for shares.
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from arl_core.edit import read_constants, summarise
from arl_core.policy.levers import Lever, Levers, built_in_levers
from arl_core.policy.ranges import Ranges, outside
from arl_core.policy.searchable import searchable_runs
from arl_core.prompt import CountTokens, PastExperiment, PromptInput, build_prompt
from frozen_env.contract import Direction, Status
from frozen_env.description import built_in

Blocks = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Told:
    """What is taught of the problem besides its source: the problem's description and the user's agenda."""

    agenda: str
    path: str = built_in().path
    metric: str = built_in().metric
    direction: Direction = built_in().direction
    levers: Levers = field(default_factory=built_in_levers)
    ranges: Ranges = field(default_factory=dict)  # no edit outside is taught


LEFT_ALONE = {"REPORT_EVERY"}
FACTORS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 1.1, 1.15, 1.25, 1.35, 1.5, 1.7, 2.0, 2.5)
INT_FACTORS = (0.75, 0.85, 0.9, 0.95, 1.05, 1.1, 1.2, 1.3)
SHARE_STEPS = (-0.2, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.2)
SHARES = re.compile(r"^(WARMUP|WARMDOWN|FINAL_LR)$|_(RATIO|FRAC|SHARE)$")  # constants that lie in 0..1
LEVER_SHARE, MORE_SHARE = 0.5, 0.35  # structural edits; of the others, edits that pull a second lever (and a third)
STATUSES = (Status.KEPT, Status.DISCARDED, Status.DISCARDED, Status.STOPPED_EARLY, Status.CRASHED, Status.REJECTED)


@dataclass(frozen=True)
class Example:
    """One prompt and the edits to teach under it; each edit is blocks that apply in order to `source`."""

    source: str
    prompt: str
    edits: tuple[Blocks, ...]


def completion(blocks: Blocks) -> str:
    """Return an edit as the policy spells it, without the final newline."""
    return "\n".join(f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE" for search, replace in blocks)


def apply(source: str, blocks: Blocks) -> str | None:
    """Return the edited source, or None when a SEARCH is not there exactly once or the result does not parse."""
    for search, replace in blocks:
        if ("\n" + source).count(f"\n{search}\n") != 1 or search == replace:
            return None
        source = ("\n" + source).replace(f"\n{search}\n", f"\n{replace}\n" if replace else "\n", 1)[1:]
    try:
        ast.parse(source)
    except SyntaxError:
        return None
    return source


def synthesise(
    source: str,
    states: int,
    edits: int,
    told: Told,
    count_tokens: CountTokens,
    prompt_tokens: int,
    seed: int,
    most_blocks: int = 2,
) -> list[Example]:
    """Return `states` examples with up to `edits` different edits each, of up to `most_blocks` blocks.

    The same arguments give the same examples.
    """
    rng = random.Random(seed)
    examples = []
    for index in range(states):
        state, past, tried = _state(source, rng, rng.choice((0, 0, 1, 2, 3, 5)), most_blocks, told)
        chosen: dict[str, Blocks] = {}
        for _ in range(edits * 4):
            blocks = draw_edit(state, rng, most_blocks, told.levers)
            edited = blocks and apply(state, blocks)
            if not blocks or not edited or edited in tried or outside(edited, told.ranges):
                continue
            if len(chosen) < edits:
                chosen[edited] = blocks
        prompt = _prompt(state, past, told, count_tokens, prompt_tokens, rng, index)
        examples.append(Example(state, prompt, tuple(chosen.values())))
    return examples


def draw_edit(source: str, rng: random.Random, most_blocks: int = 2, levers: Levers | None = None) -> Blocks | None:
    """Return one edit of the source, of up to most_blocks blocks, or None when the draw does not apply to it.

    `levers` are the problem's templates (None: the built-in problem's).
    """
    levers = built_in_levers() if levers is None else levers
    has_levers = any(_fits(source, lever) for lever in levers.every)
    if has_levers and rng.random() < LEVER_SHARE:
        return _pull_lever(levers, rng)
    blocks = _move_constant(source, rng)
    while blocks is not None and len(blocks) < most_blocks and rng.random() < MORE_SHARE:
        edited = apply(source, blocks)
        pull = rng.random() < 0.3 and bool(levers.every)
        more = (_pull_lever(levers, rng) if pull else _move_constant(edited, rng)) if edited else None
        if more is None or len(more) != 1 or more[0][0] in {replace for _, replace in blocks}:
            break
        blocks = (*blocks, *more)
    return blocks


def _fits(source: str, lever: Lever) -> bool:
    return lever.blocks[0][0] in source


def _pull_lever(levers: Levers, rng: random.Random) -> Blocks:
    kind = rng.choice(sorted({lever.kind for lever in levers.every}))
    lever: Lever = rng.choice([one for one in levers.every if one.kind == kind])
    values = {name: rng.choice(choices) for name, choices in levers.options.items()}
    return tuple((search, _fill(replace, values)) for search, replace in lever.blocks)


def _fill(template: str, values: dict[str, str]) -> str:
    """Put values for {names}, twice over, as a value may name others."""
    for _ in range(3):
        template = re.sub(r"\{([a-z]+)\}", lambda match: values.get(match.group(1), match.group(0)), template)
    return template


def _move_constant(source: str, rng: random.Random) -> Blocks | None:
    constants = {name: value for name, value in read_constants(source).items() if name not in LEFT_ALONE}
    if not constants:
        return None
    name = rng.choice(sorted(constants))
    found = re.search(rf"^{name} = (.+?)( +#.*)?$", source, re.MULTILINE)
    if found is None:
        return None
    if (power := re.fullmatch(r"2\*\*(\d+)", found.group(1))) and isinstance(constants[name], int):
        moved: str | None = f"2**{max(0, int(power.group(1)) + rng.choice((-2, -1, 1, 2)))}"
    else:
        moved = move(name.upper(), constants[name], {key.upper(): value for key, value in constants.items()}, rng)
    if moved is None or moved == found.group(1):
        return None
    comment = f"  {found.group(2).strip()}" if found.group(2) else ""
    return ((found.group(0), f"{name} = {moved}{comment}"),)


def move(name: str, value: object, constants: dict[str, object], rng: random.Random) -> str | None:
    """Return a constant's new value as text, on its natural scale and in a sane range; None for what has none."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, str):
        if not value.isupper():  # a name of something, no pattern
            return None
        letters = sorted(set(value))  # a pattern such as "SSSL": the same letters in another order or number
        pattern = "".join(rng.choice(letters) for _ in value)
        return json.dumps(pattern) if pattern != value else None
    if name == "HEAD_DIM" and "WIDTH" in constants:
        sizes = [s for s in (16, 32, 64, 128) if s != value and int(str(constants.get("WIDTH", 0))) % s == 0]
        return str(rng.choice(sizes)) if sizes else None
    if name == "WIDTH":
        step = int(str(constants.get("HEAD_DIM", 64)))
        moved = int(str(value)) + step * rng.choice((-2, -1, 1, 2))
        return str(moved) if 64 <= moved <= 2048 else None
    if isinstance(value, int) and name.endswith(("_SIZE", "_DIM")):
        return str(rng.choice((value // 2, value * 2))) if value > 1 else "2"
    if isinstance(value, int):
        steps = [value + s for s in (-2, -1, 1, 2)] if value < 16 else [round(value * f) for f in INT_FACTORS]
        sane = [s for s in steps if 1 <= s <= 4096 and s != value]
        return str(rng.choice(sane)) if sane else None
    if isinstance(value, tuple) and len(value) == 2:
        return f"({rng.choice((0.7, 0.8, 0.85, 0.9))}, {rng.choice((0.9, 0.95, 0.97, 0.98, 0.99, 0.999))})"
    if not isinstance(value, float):
        return None
    if name == "MUON_MOMENTUM":
        return _short(rng.choice((0.85, 0.9, 0.92, 0.93, 0.96, 0.97, 0.98)))
    if SHARES.search(name):
        return _short(min(1.0, max(0.0, round(value + rng.choice(SHARE_STEPS), 3))))
    return _short(value * rng.choice(FACTORS)) if value else _short(rng.choice((0.001, 0.01, 0.03, 0.1)))


def _short(value: float) -> str:
    """Two significant digits, as a person writes them: 0.014, 2.8e-3 as 0.0028, 12000.0."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.1e}".replace("e-0", "e-") if rounded and abs(rounded) < 1e-3 else str(rounded)


def _state(
    source: str, rng: random.Random, steps: int, most_blocks: int, told: Told
) -> tuple[str, list[tuple[Status, str]], set[str]]:
    """Return a state of the file some edits later, what was tried on the way, (status, summary), oldest first, and its programs."""
    past: list[tuple[Status, str]] = []
    tried: set[str] = set()
    for _ in range(steps + rng.choice((0, 1, 4, 10, 20, 30))):
        blocks = draw_edit(source, rng, most_blocks, told.levers)
        edited = apply(source, blocks) if blocks else None
        if not edited or outside(edited, told.ranges):
            continue
        kept = sum(status is Status.KEPT for status, _ in past)
        status = Status.KEPT if kept < steps and rng.random() < 0.3 else rng.choice(STATUSES[1:])
        past.append((status, summarise(source, edited)))
        tried.add(edited)
        if status is Status.KEPT and searchable_runs(edited, 3):
            source = edited
    return source, past, tried


def _prompt(
    source: str,
    past: Sequence[tuple[Status, str]],
    problem: Told,
    count_tokens: CountTokens,
    limit: int,
    rng: random.Random,
    index: int,
) -> str:
    best_value, scale = rng.uniform(0.9, 2.2), 10 ** rng.uniform(-3.0, -1.5)  # of one gain, in the metric's units
    sign = 1 if problem.direction == "lower" else -1  # of what is worse
    best = PastExperiment(0, Status.KEPT, "the target as it is", best_value)
    told: list[PastExperiment] = []
    value = best_value + sign * scale * sum(status is Status.KEPT for status, _ in past)
    for number, (status, summary) in enumerate(past, start=1):
        measured: float | None = None
        if status is Status.KEPT:
            value -= sign * scale * rng.random()
            measured = value
        elif status is Status.DISCARDED:
            measured = value + sign * 3 * scale * rng.random() ** 2
        estimate = value + sign * scale * (3 + 10 * rng.random()) if status is Status.STOPPED_EARLY else None
        reason = "" if measured or estimate else rng.choice(("NaN loss", "out of memory", "shape mismatch"))
        told.append(PastExperiment(number, status, summary, measured, estimate, reason))
        if status is Status.KEPT:
            best = told[-1]
    scored = sorted((one for one in told if one.value is not None), key=lambda one: sign * (one.value or 0.0))
    given = PromptInput(
        agenda=problem.agenda,
        source=source,
        metric=problem.metric,
        direction=problem.direction,
        best=best,
        recent=told[::-1][:32],
        top=scored[:5],
        diagnostics=[f"last run #{len(past)}: {rng.randrange(10, 900) * 2048} tokens in 20 of 20 s"] if past else [],
        experiment_index=index + len(past),
        path=problem.path,
    )
    return build_prompt(given, count_tokens, limit).text
