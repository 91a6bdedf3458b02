"""From the memory's rows to what arl_core.confirm decides on: results by seed, the noise, the error spent; and in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from arl_core.config import ConfirmSettings
from arl_core.confirm import Decision, Judgement, Noise, PairedTest, moderated, paired_gains, pooled
from arl_core.outcome import Outcome
from arl_core.records import Experiment
from arl_core.repeats import Repeat, Role
from frozen_env.contract import Cause, Direction, Status, is_better

FOUND_OUT = (Cause.LOOKAHEAD, Cause.STATEFUL)  # causes that are a program's own doing
SPARE_SEEDS = 4  # for seeds on which the incumbent itself fails


@dataclass(frozen=True)
class Evidence:
    """All repeats that count for a campaign: its own, and those of earlier campaigns for the noise alone."""

    own: Sequence[Repeat]
    earlier: Sequence[Repeat] = ()
    direction: Direction = "lower"

    def results(self, source_hash: str) -> dict[int, float | None]:
        """Return a program's results on fresh seeds; the campaign's own seed, on which it was selected, is not among them."""
        return {one.seed: one.value for one in self._fresh(source_hash)}

    def crash(self, source_hash: str) -> str:
        """Return how a program failed on a fresh seed; "" when it gave a value on all that it ran on."""
        failed = next((one for one in self._fresh(source_hash) if one.value is None), None)
        return f"its re-run on seed {failed.seed} gave no score ({failed.reason})" if failed else ""

    def _fresh(self, source_hash: str) -> list[Repeat]:
        return [one for one in self.own if one.source_hash == source_hash and one.role is not Role.FIRST]

    def noise(self, without: str = "") -> Noise | None:
        """Pool the baseline's repeats (experiment 0's own run too: nothing selected it) and every candidate's pairs.

        `without`: a program of this campaign whose own pairs do not count, since they are judged by it.
        """
        repeats: dict[tuple[str, str], list[float]] = {}
        tests: dict[tuple[str, str, str], dict[int, float | None]] = {}
        runs: dict[tuple[str, str], dict[int, float | None]] = {}
        for one in (*self.earlier, *self.own):
            if one.value is not None and (one.role is Role.BASELINE or (one.role is Role.FIRST and one.index == 0)):
                repeats.setdefault((one.campaign_id, one.source_hash), []).append(one.value)
            if one.role is Role.CANDIDATE:
                tests.setdefault((one.campaign_id, one.source_hash, one.against), {})[one.seed] = one.value
            if one.role is not Role.FIRST:
                runs.setdefault((one.campaign_id, one.source_hash), {})[one.seed] = one.value
        here = {one.campaign_id for one in self.own}
        differences = [
            paired_gains(sorted(mine), mine, runs.get((campaign, against), {}), self.direction)
            for (campaign, program, against), mine in tests.items()
            if not (program == without and campaign in here)
        ]
        return pooled(repeats.values(), differences)

    def spread(self, source_hash: str, noise: Noise | None, borrowed_df: float) -> float | None:
        """Return a program's standard deviation over fresh seeds, in the metric's units, steadied by `noise`; None when nothing
        is known of it.
        """
        values = [value for value in self.results(source_hash).values() if value is not None]
        return moderated(values, noise, borrowed_df)

    def spent(self) -> list[float]:
        """Return the levels of the tests begun so far."""
        return [one.level for one in self.own if one.level is not None]

    def level(self, source_hash: str) -> float | None:
        """Return the level of a test that was begun, None when it was not."""
        return next((one.level for one in self.own if one.level is not None and one.source_hash == source_hash), None)


def reference(incumbent: Experiment) -> float:
    """Return the incumbent's value to compare with: its mean over fresh seeds, its single run when there is no other.

    Raises ValueError for an experiment without a value.
    """
    if incumbent.figure is None:
        raise ValueError(
            f"experiment {incumbent.index} has no value and cannot be an incumbent, got {incumbent.value!r}"
        )
    return incumbent.figure


def fresh_seeds(campaign_seed: int, count: int) -> list[int]:
    """Return the campaign's fresh seeds, the same for every candidate, so that the incumbent's runs serve all of them."""
    return [(campaign_seed + 1 + k) % 2**31 for k in range(count)]


def baseline_seeds(campaign_seed: int, count: int, tried: dict[int, float | None]) -> list[int]:
    """Return the seeds of the noise floor: the first `count` that have not all failed. `tried`: results so far, by seed.

    A start at which all of them failed (a busy GPU, a full disk) must not decide for ever: the next one takes the next seeds.
    """
    failed = {seed for seed, value in tried.items() if value is None}
    begin = 0
    while set(seeds := fresh_seeds(campaign_seed, begin + count)[begin:]) <= failed:
        begin += count
    return seeds


def seeds_for(index: int, own: Sequence[Repeat], campaign_seed: int, count: int, reuse: bool) -> list[int]:
    """Return the seeds of experiment `index`'s pairs: the campaign's, or without reuse those that no other experiment used."""
    if reuse:
        return fresh_seeds(campaign_seed, count)
    used = {one.seed for one in own if one.index != index}
    return [seed for seed in fresh_seeds(campaign_seed, count + len(used)) if seed not in used][:count]


def most_promising(waiting: Sequence[tuple[int, float | None]], begun: Collection[int], direction: Direction) -> int:
    """Return the place in `waiting` of the run to look at next: one whose second look has begun, else the best value.

    `waiting`: each experiment's index and the value of its first run, in the metric's units. `begun`: indices of those whose
    second look was cut off. Once the best is promoted, most of the others are no longer better and are settled without a re-run.
    The test of each leaves its first run out, so the order favours none.
    """

    def rank(place: int) -> tuple[bool, float]:
        index, value = waiting[place]
        if value is None:
            return index not in begun, math.inf
        return index not in begun, value if direction == "lower" else -value

    return min(range(len(waiting)), key=rank)


def paired_test(settings: ConfirmSettings) -> PairedTest:
    return PairedTest(settings.max_reruns, settings.first_look, settings.borrowed_df)


def gain_over(value: float, incumbent: float, direction: Direction) -> float:
    """Return how much `value` is better than the incumbent's, in the metric's units; negative when it is worse."""
    return incumbent - value if direction == "lower" else value - incumbent


def value_with(gain: float, incumbent: float, direction: Direction) -> float:
    """Return the value that is better than the incumbent's by `gain`, all in the metric's units."""
    return incumbent - gain if direction == "lower" else incumbent + gain


def worse_of(one: float, other: float, direction: Direction) -> float:
    """Return the worse of two values."""
    return other if is_better(one, other, direction) else one


def mean_of(results: dict[int, float | None]) -> tuple[float | None, int]:
    """Return the mean over the seeds that gave a value, and their number; (None, 0) when none did."""
    values = [value for value in results.values() if value is not None]
    return (math.fsum(values) / len(values), len(values)) if values else (None, 0)


def best_after(
    present: float | None, status: Status, value: float | None, confirmed: float | None, direction: Direction
) -> float | None:
    """Return the best after a commit, in the metric's units. `present`: the best before it, None before the first.

    `value`: the single run of what is committed. `confirmed`: its mean over fresh seeds, None where there is none.
    """
    if status is not Status.KEPT or value is None or math.isnan(value):
        return present
    if confirmed is not None:
        return confirmed  # it won in pairs, on seeds of which the incumbent may have more
    return value if present is None or is_better(value, present, direction) else present


# --- what becomes of an incumbent and of a candidate ------------------------------------------------------------------


def found_out(incumbent: int, rerun: Outcome, seed: int) -> Outcome | None:
    """Return what becomes of an incumbent whose re-run shows that it looks ahead or remembers what it was asked: what its program
    does, whatever the seed. None: it keeps its place. So it does after a broken protocol or two different answers, which a stalled
    machine or a GPU may bring about, and experiment 0 always does, since nothing stands behind it.
    """
    if rerun.cause not in FOUND_OUT or incumbent == 0:
        return None
    return replace(rerun, value=None, reason=f"was kept, then found out in a re-run on seed {seed}: {rerun.reason}")


def too_small(outcome: Outcome, gain: float, noise: Noise | None, factor: float) -> Outcome:
    """A gain on one run that noise alone would often give is not looked into."""
    floor = factor * noise.sd_difference if noise else 0.0
    words = f"beat the incumbent by {gain:.4f} on one run; too little for a second look (from {floor:.4f} on)"
    return replace(outcome, status=Status.DISCARDED, reason=words)


def settled(
    outcome: Outcome, first_gain: float, judgement: Judgement | None, failure: str = "", crash: str = ""
) -> Outcome:
    """Kept when the test promoted it; else discarded, with the evidence in words. `failure`: why its re-runs ended.

    `crash`: how it failed on a fresh seed. It then counts as crashed, without a value: one lucky run of an unstable program
    must neither be rewarded nor be taken for its worth.
    """
    begins = f"beat the incumbent by {first_gain:.4f} on one run; "
    if crash:
        return replace(outcome, status=Status.CRASHED, value=None, reason=f"{begins}{crash}")
    if failure:
        return replace(outcome, status=Status.DISCARDED, reason=f"{begins}{failure}")
    if judgement is None:
        return replace(outcome, status=Status.DISCARDED, reason=f"{begins}no pair could be made")
    error = f" ± {judgement.error:.4f}" if math.isfinite(judgement.error) else ""
    mean = f"mean gain {judgement.gain:+.4f}{error}"
    numbers = f"{mean}, p {judgement.p:.2g}, needed {judgement.level:.2g}"
    times = f"{judgement.pairs} paired re-run{'s' if judgement.pairs > 1 else ''}"
    if judgement.decision is Decision.PROMOTE:
        return replace(outcome, status=Status.KEPT, reason=f"confirmed in {times} ({numbers})")
    return replace(outcome, status=Status.DISCARDED, reason=f"{begins}not confirmed in {times} ({numbers})")


def confirmation_of(
    noise: Noise | None,
    sd: float | None = None,
    judgement: Judgement | None = None,
    *,
    runs: int | None = None,
    level: float | None = None,
    promotion: int | None = None,
) -> dict[str, Any]:
    """Return what an experiment's record says of its confirmation (`extra["confirmation"]`); what is None is left out.

    sd: the program's standard deviation over fresh seeds, in the metric's units. runs: re-runs done for it. level: the error
    that its test could use. promotion: how many have taken over, this one included, when it was kept.
    """
    told: dict[str, Any] = {}
    if noise is not None:
        told |= {"noise_sd": noise.sd, "noise_df": noise.df}
    told |= {"sd": sd, "runs": runs, "level": level}
    if judgement is not None:
        told |= {"pairs": judgement.pairs, "gain": judgement.gain, "error": judgement.error, "p": judgement.p}
    told["promotion"] = promotion
    return {name: value for name, value in told.items() if value is not None}
