"""What a campaign found, as plain data: the answer first, then the evidence. Nothing here draws or writes.

Works on any list of a campaign's experiments in order of index: one alone, none that improved, one that still grows.
Gains are positive for an improvement, in the metric's units, whichever direction the metric has.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from arl_core.edit import canonical_diff, levers, named_path, summarise
from arl_core.records import Experiment
from arl_core.second_look import gain_over
from frozen_env.contract import Status, is_better

RAN = (Status.KEPT, Status.DISCARDED, Status.STOPPED_EARLY)  # the edit was valid and its program trained
POLICY_PARTS = ("load_policy", "prompt", "propose", "update", "checkpoint", "policy_to_cpu", "policy_to_device")
AFTER_COMMIT = ("before/between",)  # told in the next experiment's record; holds before/commit and before/track


def noise_sd(experiments: Sequence[Experiment]) -> float | None:
    """Standard deviation of one program's value over seeds, as last known to the campaign; None when it was not measured."""
    for one in reversed(experiments):
        told = (one.extra.get("confirmation") or {}).get("noise_sd")
        if told is not None and math.isfinite(float(told)):
            return float(told)
    return None


def incumbents(experiments: Iterable[Experiment]) -> list[Experiment | None]:
    """The incumbent after each experiment: the last one promoted, of single runs the best; None before the first."""
    held: Experiment | None = None
    found: list[Experiment | None] = []
    for one in experiments:
        value = one.figure
        if one.status is Status.KEPT and value is not None and _takes_over(one, value, held):
            held = one
        found.append(held)
    return found


def _takes_over(one: Experiment, value: float, held: Experiment | None) -> bool:
    bar = held.figure if held is not None else None
    if held is None or bar is None or one.promotion > held.promotion:
        return True
    return one.promotion == held.promotion and is_better(value, bar, one.direction)


def best_of(experiments: Iterable[Experiment]) -> Experiment | None:
    """The incumbent after all; None when none was kept with a value."""
    return next(reversed(incumbents(experiments)), None)


def staircase(experiments: Sequence[Experiment]) -> list[tuple[int, float]]:
    """The incumbent's value after each experiment, from the first kept one on: (index, value)."""
    return [
        (one.index, value)
        for one, held in zip(experiments, incumbents(experiments), strict=True)
        if held is not None and (value := held.figure) is not None
    ]


def gains(experiments: Sequence[Experiment]) -> list[float]:
    """What each proposal (every experiment after the first kept one) moved the incumbent's value; 0 for most.

    Single runs cannot lose; a confirmed successor won on common seeds, and its own mean may still be a little worse.
    """
    if not experiments:
        return []
    steps = staircase(experiments)
    return [gain_over(after, before, experiments[0].direction) for (_, before), (_, after) in itertools.pairwise(steps)]


# --- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Did it improve, by how much, is it confirmed, what changed. start and best are None without a scored experiment."""

    start: Experiment | None
    best: Experiment | None
    gain: float = 0.0
    summary: str = ""  # what the best program changed against the first, all edits together
    diff: str = ""

    @property
    def improved(self) -> bool:
        """Whether anything took the start's place. The gain tells how much, and can be below 0 (`gains`)."""
        return self.start is not None and self.best is not None and self.best.index != self.start.index

    @property
    def confirmed(self) -> bool:
        return self.best is not None and self.best.repeated

    @property
    def share(self) -> float:
        """The gain as a share of the start; 0 where the start is 0."""
        value = self.start.figure if self.start else None
        return self.gain / abs(value) if value else 0.0


def answer(experiments: Sequence[Experiment]) -> Answer:
    """Return the answer. The start is experiment 0 when it has a value, else the first kept one."""
    scored = [one for one in experiments if one.figure is not None]
    start = next((one for one in scored if one.index == 0), None) or next(
        (one for one in scored if one.status is Status.KEPT), None
    )
    best = best_of(experiments)
    if start is None or best is None:
        return Answer(start, best)
    first, last = start.figure, best.figure
    assert first is not None
    assert last is not None
    if best.index == start.index:
        return Answer(start, best)
    # A long list of edits is cut at a place of its own in the page, not by the one-line limit of tables.
    words = summarise(start.source, best.source, limit=600) if start.source and best.source else best.summary
    known = start.source and best.source
    diff = change_since(start.source, best) if known else best.diff
    return Answer(start, best, gain_over(last, first, best.direction), words, diff)


def change_since(source: str, best: Experiment) -> str:
    """Return the unified diff from `source` to the best's program, all edits in between together; "" where they are the same."""
    return canonical_diff(source, best.source, named_path(best.diff, best.source))


@dataclass(frozen=True)
class Improvement:
    """One step of the staircase."""

    experiment: Experiment
    before: float
    after: float
    gain: float

    @property
    def confirmed(self) -> bool:
        return self.experiment.repeated


def improvements(experiments: Sequence[Experiment]) -> list[Improvement]:
    """Every experiment that became the incumbent after the first, in order."""
    found = []
    for before, after in itertools.pairwise(incumbents(experiments)):
        if before is None or after is None or after.index == before.index:
            continue
        was, becomes = before.figure, after.figure
        assert was is not None
        assert becomes is not None
        found.append(Improvement(after, was, becomes, gain_over(becomes, was, after.direction)))
    return found


@dataclass(frozen=True)
class Generation:
    """One program on the way from the first to the best, with what was tried on top of it."""

    experiment: Experiment
    gain: float  # over its parent's value; 0 for the first
    tried: Counter[Status]  # its children, the next on the way among them


def lineage(experiments: Sequence[Experiment]) -> list[Generation]:
    """The way from the seed to the best: parents followed back. Empty without a kept experiment. Cycles end it."""
    by_index = {one.index: one for one in experiments}
    tried: dict[int, Counter[Status]] = defaultdict(Counter)
    for one in experiments:
        if one.parent_index is not None:
            tried[one.parent_index][one.status] += 1
    way: list[Experiment] = []
    at = best_of(experiments)
    while at is not None and at not in way:
        way.append(at)
        at = by_index.get(at.parent_index) if at.parent_index is not None else None
    way.reverse()
    found = []
    for place, one in enumerate(way):
        before = way[place - 1].figure if place else None
        after = one.figure
        gain = gain_over(after, before, one.direction) if before is not None and after is not None else 0.0
        found.append(Generation(one, gain, tried[one.index]))
    return found


def depths(experiments: Sequence[Experiment]) -> dict[int, int]:
    """How many edits each experiment is away from the seed, by index; a lost parent counts as the seed."""
    found: dict[int, int] = {}
    for one in experiments:  # a parent has a lower index
        found[one.index] = 0 if one.parent_index is None else found.get(one.parent_index, 0) + 1
    return found


# --- the evidence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Savings:
    """What stopping hopeless runs saved, in seconds of training."""

    stopped: int
    ran: int  # stopped ones among them
    spent_s: float
    saved_s: float

    @property
    def throughput(self) -> float:
        """Runs per full-run equivalent spent; 1 when nothing was saved, or nothing ran."""
        return (self.spent_s + self.saved_s) / self.spent_s if self.spent_s > 0 else 1.0


def savings(experiments: Sequence[Experiment], budget_s: float) -> Savings:
    """Training seconds of the runs that the policy proposed and that trained, against the budget each was given."""
    ran = [one for one in experiments if one.status in RAN and one.index > 0]
    stopped = [one for one in ran if one.status is Status.STOPPED_EARLY]
    saved_s = sum(max(0.0, budget_s - one.costs.get("training", 0.0)) for one in stopped)
    return Savings(len(stopped), len(ran), sum(one.costs.get("training", 0.0) for one in ran), saved_s)


@dataclass(frozen=True)
class LeverEffect:
    """One constant or function, over all edits that touched it (perhaps beside others)."""

    name: str
    tried: int
    ran: int
    improved: int
    mean_gain: float | None  # over the incumbent of the time, forecasts included; None when none ran
    standard_error: float | None  # None with fewer than two that ran
    best_gain: float | None


def lever_effects(experiments: Sequence[Experiment]) -> list[LeverEffect]:
    """What touching each lever did, most tried first. An edit of two levers counts for both: no causal claim."""
    by_index = {one.index: one for one in experiments}
    found: dict[str, list[Experiment]] = defaultdict(list)
    for one in experiments:
        parent = by_index.get(one.parent_index) if one.parent_index is not None else None
        if parent is None or not parent.source or not one.diff:
            continue
        for name in levers(parent.source, one.diff):
            found[name].append(one)
    return sorted(
        (_effect(name, tried) for name, tried in found.items()), key=lambda effect: (-effect.tried, effect.name)
    )


def _effect(name: str, tried: Sequence[Experiment]) -> LeverEffect:
    won = []
    for one in tried:
        value = one.figure if one.figure is not None else one.estimate
        if one.status in RAN and value is not None and one.incumbent_value is not None and math.isfinite(value):
            won.append(gain_over(value, one.incumbent_value, one.direction))
    return LeverEffect(
        name=name,
        tried=len(tried),
        ran=len(won),
        improved=sum(one.status is Status.KEPT for one in tried),
        mean_gain=statistics.fmean(won) if won else None,
        standard_error=statistics.stdev(won) / math.sqrt(len(won)) if len(won) > 1 else None,
        best_gain=max(won) if won else None,
    )


@dataclass(frozen=True)
class LearningPoint:
    """The experiments since the update before, and the metrics of the update that ended them."""

    index: int  # of the experiment that the update came with
    proposals: int
    reward_mean: float | None
    valid: float  # share of proposals whose program trained
    improving: float  # share that was kept
    metrics: dict[str, float] = field(default_factory=dict)


def learning(experiments: Sequence[Experiment]) -> list[LearningPoint]:
    """One point per policy update, oldest first; proposals after the last update make no point."""
    points, since = [], []
    for one in experiments:
        if one.parent_index is None:
            continue
        since.append(one)
        update = one.extra.get("update")
        if not update:
            continue
        rewards = [each.reward for each in since if each.reward is not None]
        numbers = {key: float(value) for key, value in dict(update).items() if isinstance(value, int | float)}
        # Side by side the batch is what landed first, not the rows before this one; older records have only these.
        rewarded = numbers.get("reward_batch_mean", statistics.fmean(rewards) if rewards else None)
        points.append(
            LearningPoint(
                index=one.index,
                proposals=len(since),
                reward_mean=rewarded,
                valid=sum(each.status in RAN for each in since) / len(since),
                improving=sum(each.status is Status.KEPT for each in since) / len(since),
                metrics=numbers,
            )
        )
        since = []
    return points


def wall_clock_s(experiments: Sequence[Experiment]) -> float:
    """Seconds in which the campaign ran: those of candidates side by side count once, pauses between two starts not at all.

    An experiment that begins after all before it have ended, and was not the next of a loop (no `before/between`), is the
    first of another start. Without recorded times: the sum of all parts.
    """
    if not all(one.created_at for one in experiments):
        return sum(time_by_part(experiments).values())
    spans = []
    for one in experiments:
        ended_s = datetime.fromisoformat(one.created_at).timestamp()
        goes_on = any(part in one.costs for part in AFTER_COMMIT)
        spans.append((ended_s - one.costs.get("iteration", 0.0), ended_s, goes_on))
    spent_s = until_s = 0.0
    for began_s, ended_s, goes_on in sorted(spans):
        if not until_s or (began_s > until_s and not goes_on):
            until_s = began_s
        spent_s += max(0.0, ended_s - until_s)
        until_s = max(until_s, ended_s)
    return spent_s


def time_by_part(experiments: Iterable[Experiment]) -> dict[str, float]:
    """Seconds by part: training, scoring, candidate's start-up, policy, confirming, the rest.

    One candidate after the other they add up to the wall clock; side by side to more.
    """
    parts: dict[str, float] = dict.fromkeys(("training", "scoring", "start-up", "policy", "confirming", "rest"), 0.0)
    for one in experiments:
        costs = one.costs
        told = {
            "training": costs.get("training", 0.0),
            "scoring": costs.get("scoring", 0.0),
            "start-up": costs.get("startup", 0.0),
            "policy": sum(costs.get(part, 0.0) for part in POLICY_PARTS),
            "confirming": costs.get("confirm", 0.0),
        }
        whole_s = costs.get("iteration", 0.0) + sum(costs.get(part, 0.0) for part in AFTER_COMMIT)
        told["rest"] = max(0.0, whole_s - sum(told.values()))
        for part, seconds in told.items():
            parts[part] += seconds
    return {part: seconds for part, seconds in parts.items() if seconds > 0}
