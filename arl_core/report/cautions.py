"""What a careful reader must know before believing the headline: one function per caution, each "" where it has no cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arl_core.records import Experiment
from arl_core.report.findings import Answer
from arl_core.report.signs import mostly_crashes, noise_above_spread, other_pace, repeats_itself
from arl_core.report.words import number, plural
from arl_core.theory import gain_by_luck
from frozen_env.contract import Status


def in_quotes(text: str) -> str:
    return f"“{text}”"


def cautions(
    found: Answer,
    experiments: Sequence[Experiment],
    noise: float | None,
    quoted: Callable[[str], str] = in_quotes,
) -> list[str]:
    """Return all that have a cause, in the order in which they are to be read.

    `noise`: the standard deviation of one program's value, in the metric's units, None when it was not measured. `quoted` sets a
    candidate's own words off.
    """
    seen = _Seen(found, experiments, noise, quoted)
    return [told for caution in _CAUTIONS if (told := caution(seen))]


@dataclass(frozen=True)
class _Seen:
    """What a caution may look at, as cautions() takes it."""

    found: Answer
    experiments: Sequence[Experiment]
    noise: float | None
    quoted: Callable[[str], str]


def _single_run(seen: _Seen) -> str:
    if not seen.found.improved or seen.found.confirmed:
        return ""
    return (
        "The best value is a single run. Runs of one program differ by seed and by load, and the best of many is partly "
        "the luckiest of many: repeat it on fresh seeds before building on it."
    )


def _weight(seen: _Seen) -> str:
    """What the gain weighs: its pairs where it was confirmed, else what luck alone would give."""
    found = seen.found
    if not found.improved:
        return ""
    if found.confirmed and found.best is not None:
        paired = _paired_gain(found.best)
        return paired and (
            f"Confirmed on fresh seeds, which selected nothing: {paired}. "
            f"The gain over experiment 0 adds up promotions, each with an error of its own."
        )
    if not seen.noise:
        return (
            "The noise of one program's value was not measured in this campaign: a gain cannot be weighed against it."
        )
    scored = sum(one.status in (Status.KEPT, Status.DISCARDED) for one in seen.experiments)
    luck = gain_by_luck(seen.noise, max(0, scored - 1))
    words = "more than that" if found.gain > luck else "no more than that"
    return (
        f"Repeats of one program have a standard deviation of {number(seen.noise)}. If no edit had any effect, the luckiest "
        f"of {scored} scored runs would still look {number(luck)} better than the first; "
        f"the gain is {number(found.gain)}, {words}."
    )


def _paired_gain(best: Experiment) -> str:
    """How much a confirmed best was better than the incumbent that it replaced, seed by seed; "" where nobody wrote it down."""
    told = best.extra.get("confirmation") or {}
    gain, error, pairs = told.get("gain"), told.get("error"), told.get("pairs")
    if not isinstance(gain, int | float) or not isinstance(error, int | float) or not pairs:
        return ""
    return (
        f"in {pairs} pairs of runs experiment {best.index} was {number(float(gain))} ± {number(float(error))} (standard error) "
        "better than the incumbent before it"
    )


def _disturbed(seen: _Seen) -> str:
    if not (disturbed := noise_above_spread(seen.experiments)):
        return ""
    sd, spread, programs = disturbed
    return (
        f"Repeats of one program have a standard deviation of {number(sd)}, yet the middle half of {programs} different "
        f"programs one of only {number(spread)}: other work seems to have disturbed the repeats (or a seed does more than an "
        "edit). Gains were held against too large a noise, and real ones may have been missed. Start anew on a quiet machine: "
        "--fresh --set confirm.history=false."
    )


def _pace(seen: _Seen) -> str:
    if not (paced := other_pace(seen.experiments)):
        return ""
    ratio, runs = paced
    then = "gains may then have been missed" if ratio < 1 else "a gain may then be the machine's"
    return (
        f"The latest {runs} runs got through {ratio:.2f} times as many tokens a second as the programs that they edit "
        "(median). Either the edits change what a step costs, or the machine has changed: other work, heat, another clock. "
        f"Under a time budget {then}; --set confirm.reuse=false runs the incumbent anew beside every candidate."
    )


def _crashes(seen: _Seen) -> str:
    if not (crashes := mostly_crashes(seen.experiments)):
        return ""
    often = f"most often with {seen.quoted(crashes.reason)} " if crashes.reason else "most often without a reason "
    return (
        f"Of the last {crashes.proposals} proposals {crashes.crashed} crashed, {often}"
        f"({crashes.times}×, last in experiment {crashes.index}). Edits that crash alike are often not at fault: read that "
        "experiment's log (make ui: it is among its artifacts). On a GPU see nvidia-smi, and whether python -m bench.gpu_probe "
        "passes, then resume."
    )


def _repetition(seen: _Seen) -> str:
    if not (repeated := repeats_itself(seen.experiments)):
        return ""
    new, proposals = repeated
    return (
        f"Of the last {proposals} proposals only {new} made a program that applied and had not been tried: the policy "
        "repeats itself. Go on with a higher policy.temperature or policy.entropy_coef, or start anew with --fresh."
    )


def _sandbox(seen: _Seen) -> str:
    if all(one.sandbox != "OFF" for one in seen.experiments):
        return ""
    return "The sandbox was off for some runs: candidates could have reached files that hold the answers."


def _repairs(seen: _Seen) -> str:
    if not (repaired := sum(bool(one.repairs) for one in seen.experiments)):
        return ""
    return f"{plural(repaired, 'edit')} had to be repaired before it applied; the table of the memory says how."


def _environments(seen: _Seen) -> str:
    if len({one.environment_digest for one in seen.experiments if one.environment_digest}) <= 1:
        return ""
    return "Experiments ran on different frozen environments: their values do not compare."


_CAUTIONS = (
    _single_run,
    _weight,
    _disturbed,
    _pace,
    _crashes,
    _repetition,
    _sandbox,
    _repairs,
    _environments,
)
