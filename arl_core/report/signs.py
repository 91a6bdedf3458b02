"""Signs that a campaign's figures are not what they seem: noise that is not the programs', a policy that repeats itself, a
machine that has changed or fails. Each is None where there is none; words.py makes sentences of them."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from arl_core.diversity import is_new
from arl_core.memory import RECENT
from arl_core.records import Experiment, one_line
from arl_core.report.findings import RAN, noise_sd
from frozen_env.contract import Status

PROGRAMS = 12  # from here on a spread is known to a third
NORMAL_QUARTILES = 1.349  # between the quartiles of a normal law, in standard deviations
PACES = 8  # latest runs whose pace is held against their parents'
MOST_PACES = 6  # of these on one side: an edit or two may well change what a step costs
OTHER_PACE = 0.1  # relative change that is no jitter
ENDINGS = 16  # latest proposals whose endings count


def noise_above_spread(experiments: Sequence[Experiment]) -> tuple[float, float, int] | None:
    """(noise, spread, programs) when repeats of one program lie further apart than different programs do; None when not.

    What moves a run moves those of different programs too, so noise can exceed their spread only by what the seed does: the
    repeats have several, the programs' first runs share one. A factor of 3 is more than seeds usually do. Spread: the middle
    half's width as a standard deviation (of `PROGRAMS` programs or more), so that a few that are much better or worse do not
    count; 0, where runs repeat themselves and edits do nothing, says nothing.
    """
    noise = noise_sd(experiments)
    first = {one.source_hash or one.index: one.value for one in reversed(experiments) if one.index}
    values = [value for value in first.values() if value is not None and math.isfinite(value)]
    if noise is None or len(values) < PROGRAMS:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    spread = (high - low) / NORMAL_QUARTILES
    return (noise, spread, len(values)) if 0 < 3 * spread < noise else None


def repeats_itself(experiments: Sequence[Experiment]) -> tuple[int, int] | None:
    """(new, proposals) when fewer than half of the latest proposals made a program not tried before; None when not.

    Of the latest `RECENT` proposals, half of that number at least.
    """
    latest = [one for one in experiments if one.parent_index is not None][-RECENT:]
    new = sum(map(is_new, latest))
    return (new, len(latest)) if 2 * len(latest) >= RECENT and 2 * new < len(latest) else None


@dataclass(frozen=True)
class Crashes:
    """How many of the latest proposals crashed; their commonest reason (one line, untrusted), how many have it, and the last."""

    crashed: int
    proposals: int
    reason: str
    times: int
    index: int


def mostly_crashes(experiments: Sequence[Experiment]) -> Crashes | None:
    """More than half of the latest `ENDINGS` proposals, of half of that number at least; None when not.

    Reasons that differ in their numbers alone (bytes, process ids) count as one, and are told in the last one's words.
    """
    latest = [one for one in experiments if one.parent_index is not None][-ENDINGS:]
    crashed = [one for one in reversed(latest) if one.status is Status.CRASHED]
    if 2 * len(latest) < ENDINGS or 2 * len(crashed) <= len(latest):
        return None
    kinds = [re.sub(r"\d+", "0", one_line(one.reason, 140)) for one in crashed]
    ((kind, times),) = Counter(kinds).most_common(1)
    last = crashed[kinds.index(kind)]
    return Crashes(len(crashed), len(latest), one_line(last.reason, 140), times, last.index)


def other_pace(experiments: Sequence[Experiment]) -> tuple[float, int] | None:
    """(median ratio, runs) when the latest runs got through text faster or slower than the programs they edit; None when not.

    Tokens per second of training, each run's against its parent's own first run. Six of the latest eight must lie more than a
    tenth on the same side: edits differ in what they cost, a machine that has changed moves all of them.
    """
    paces = {one.index: pace for one in experiments if (pace := _pace(one)) is not None}
    ratios = [
        paces[one.index] / paces[one.parent_index]
        for one in experiments
        if one.parent_index is not None and one.index in paces and one.parent_index in paces
    ][-PACES:]
    slower, faster = (sum(ratio < 1 - OTHER_PACE for ratio in ratios), sum(ratio > 1 + OTHER_PACE for ratio in ratios))
    return (statistics.median(ratios), len(ratios)) if max(slower, faster) >= MOST_PACES else None


def _pace(one: Experiment) -> float | None:
    told = (one.extra.get("performance") or {}).get("tokens_per_s")
    return float(told) if one.status in RAN and isinstance(told, int | float) and 0 < told < math.inf else None
