"""The report's sentences and numbers: from findings to text. Everything a candidate wrote is made visible, none of it markup."""

from __future__ import annotations

from collections.abc import Sequence

from arl_core.records import Experiment, one_line, visible
from arl_core.report.figures import duration
from arl_core.report.findings import (
    Answer,
    LearningPoint,
    Savings,
)
from arl_core.theory import MOST_EXPERIMENTS, BestSoFar, ImprovementRate
from frozen_env.contract import Direction, is_better

DIFF_LINES = 400
LINE_CHARS = 400
MINUS = "−"
SIDE_BY_SIDE = 1.05  # candidates' times over the wall clock from which on it is no rounding


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def count(value: int) -> str:
    return f"more than {MOST_EXPERIMENTS:,}" if value >= MOST_EXPERIMENTS else f"{value:,}"


def plural(value: int, word: str) -> str:
    return f"{value} {word}{'' if value == 1 else 's'}"


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """(class, line) of a diff, at most DIFF_LINES of them."""
    lines = visible(diff).splitlines()
    shown = [(_kind(line), line[:LINE_CHARS]) for line in lines[:DIFF_LINES]]
    if len(lines) > DIFF_LINES:
        shown.append(("head", f"… {len(lines) - DIFF_LINES} more lines; --export-best writes them all"))
    return shown


def _kind(line: str) -> str:
    if line.startswith(("---", "+++", "@@")):
        return "head"
    return "add" if line.startswith("+") else "del" if line.startswith("-") else "same"


def hero(found: Answer, metric: str, direction: Direction, experiments: Sequence[Experiment]) -> dict[str, object]:
    """The first thing a reader sees."""
    if not experiments:
        return {"kind": "none", "verdict": "nothing yet", "title": "No experiment is committed yet", "lead": ""}
    start = found.start.figure if found.start else None
    best = found.best.figure if found.best else None
    tried = len(experiments) - 1
    if start is None or best is None or found.best is None:
        title = "No experiment has a score yet"
        return {"kind": "none", "verdict": "no score", "title": title, "lead": one_line(experiments[-1].reason, 300)}
    if not found.improved:
        lucky = sum(
            one.value is not None and one.index > 0 and is_better(one.value, start, direction) for one in experiments
        )
        lead = f"{plural(tried, 'experiment')} after the untouched target, none of them better."
        if lucky:
            lead = (
                f"{plural(tried, 'experiment')} after the untouched target; {lucky} looked better in a single run, "
                "none was confirmed."
            )
        lead = lead if tried else "Only the untouched target has run."
        title = f"{metric} {number(start)}, as it began"
        return {"kind": "none", "verdict": "no improvement", "title": title, "lead": lead}
    way = "down" if direction == "lower" else "up"
    share = f" ({percent(abs(found.share), 1)})" if found.share else ""
    title = f"{metric} {number(best)}, {way} {number(found.gain)}{share} from {number(start)}"
    lead = f"Found by experiment {found.best.index} of {tried}."
    if found.gain <= 0:
        title = f"{metric} {number(best)}, no better by its mean than {number(start)} at the start"
        lead += " It beat its predecessor on common seeds; each mean is over other seeds too."
    error = found.best.confirmed_error
    if found.confirmed and error is not None:
        lead += f" The mean of {found.best.confirmations} fresh seeds, ± {number(error)} standard error."
    verdict = "improved, confirmed" if found.confirmed else "improved, not confirmed"
    return {"kind": "improved", "verdict": verdict, "title": title, "lead": lead, "best": found.best}


def cut_off(experiments: int, last: str) -> str:
    """How a campaign stands that nobody runs and nobody ended. last: when its last experiment was committed, "" if unknown."""
    if not experiments:
        return "cut off before its first commit"
    return f"cut off: the last commit was at {last}" if last else "cut off"


def savings_note(saved: Savings) -> str:
    if not saved.ran:
        return "No proposal has trained yet."
    if not saved.stopped:
        return f"None of the {plural(saved.ran, 'run')} was stopped early."
    return (
        f"{saved.stopped} of {plural(saved.ran, 'run')} stopped early; {duration(saved.spent_s)} trained, "
        f"{duration(saved.saved_s)} saved: {saved.throughput:.2f} runs in the time of one full run."
    )


def forecast_note(inside: int, runs: int) -> str:
    if not runs:
        return ""
    return f"{inside} of {plural(runs, 'finished run')} ended inside the 90 % interval forecast half-way."


def learning_note(points: Sequence[LearningPoint]) -> str:
    """Compare the first and the last quarter of the updates; no claim of a trend from fewer than four."""
    if len(points) < 4:
        return f"{plural(len(points), 'update')}: too few to speak of a trend."
    quarter = max(1, len(points) // 4)
    early, late = points[:quarter], points[-quarter:]

    def share(some: Sequence[LearningPoint], name: str) -> str:
        proposals = sum(point.proposals for point in some)
        return percent(sum(getattr(point, name) * point.proposals for point in some) / proposals)

    entropies = [point.metrics["entropy"] for point in (early[0], late[-1]) if "entropy" in point.metrics]
    entropy = f"; entropy went from {entropies[0]:.2f} to {entropies[1]:.2f}" if len(entropies) == 2 else ""
    return (
        f"{len(points)} updates. First against last {plural(quarter, 'update')}: {share(early, 'valid')} → "
        f"{share(late, 'valid')} of proposals trained, {share(early, 'improving')} → {share(late, 'improving')} improved{entropy}."
    )


def time_note(parts: dict[str, float], experiments: int, wall_clock_s: float) -> str:
    """The bar's caption. Where candidates ran side by side, their times exceed the wall clock, and it says so."""
    whole_s = sum(parts.values())
    if not whole_s:
        return "No times are recorded yet."
    rest = parts.get("rest", 0.0) + parts.get("start-up", 0.0)
    told = f"{duration(wall_clock_s)} in all, {wall_clock_s / max(1, experiments):.1f} s an experiment"
    if whole_s > SIDE_BY_SIDE * wall_clock_s:
        told += f". Times of candidates side by side add up, here to {duration(whole_s)}"
    return (
        f"{told}; "
        f"{percent(parts.get('training', 0.0) / whole_s)} of it trained candidates, "
        f"{percent(parts.get('policy', 0.0) / whole_s)} was the policy's, {percent(rest / whole_s)} the loop's own."
    )


def rate_row(rate: ImprovementRate, seconds_each: float) -> dict[str, str]:
    few, many = rate.needed_range
    predictive = rate.needed_predictive
    words = "0 (any gain)" if rate.epsilon == 0 else f"{rate.epsilon:.4g}"
    capped = predictive >= MOST_EXPERIMENTS
    return {
        "epsilon": words,
        "counts": f"{rate.successes} of {rate.trials}",
        "median": percent(rate.median, 1),
        "interval": f"{percent(rate.low, 1)} to {percent(rate.high, 1)}",
        "needed": count(rate.needed),
        "needed_range": f"{count(few)} to {count(many)}",
        "predictive": count(predictive),
        "hours": "–" if capped or not seconds_each else duration(predictive * seconds_each),
    }


def outlook_headline(rate: ImprovementRate, metric: str) -> str:
    what = f"another gain in {metric}" + (f" of more than {rate.epsilon:.4g}" if rate.epsilon else "")
    if not rate.trials:
        return "No proposal yet: nothing can be said."
    plan = count(rate.needed_predictive)
    if not rate.successes:
        return (
            f"None of {plural(rate.trials, 'proposal')} gained more than {rate.epsilon:.4g}: "
            f"expect to wait for {plan} or more to see one with 95 %."
        )
    return (
        f"Plan for {plan} more experiments to see {what} with 95 %; "
        f"the paper's bound at the median estimate is {count(rate.needed)}."
    )


def assumptions(rarer: float | None, confirmed: bool, process: BestSoFar, worsened: int = 0) -> list[str]:
    """Where the theory's conditions stand in this campaign. worsened: promotions whose own mean is the worse one."""
    told = [
        "Every proposal is taken for an independent draw with one unchanging p(ε), under a Jeffreys prior. The policy "
        "learns (p rises) and easy gains are used up (p falls), so this is an average over the past, not the least p over "
        "the states to come that the paper's bound asks for.",
    ]
    if rarer is not None:
        told.append(
            "Probability that p is lower in the campaign's later half than in its earlier half: "
            f"{percent(rarer)}: {_drift_words(rarer)}."
        )
    if not confirmed:
        told.append("Gains are of single runs: some successes are luck, and p(ε) for small ε is too high by that much.")
    told.append(
        "The best so far never worsens, so it is a supermartingale bounded below and converges almost surely (the paper's "
        "convergence claim; for a metric to be raised, the mirror image). That holds of any search that keeps its best, and "
        "says neither where it converges to nor how fast."
    )
    if worsened:
        told.append(
            f"At {plural(worsened, 'promotion')} the line moves the wrong way: the new incumbent beat the old one on common seeds, "
            "but each mean is over other seeds too. The claim is about true means, of which these are estimates."
        )
    if len(process.best) > 2:
        drifted = float(process.compensated[-1] - process.compensated[0])
        told.append(
            "The grey line gives back the gain that was to be expected from the experiments before. It would wander without "
            f"trend if gains kept coming at the same mean rate; it has moved by {signed(drifted)} so far."
        )
    return told


def _drift_words(rarer: float) -> str:
    if rarer > 0.9:
        return "gains have become rarer, the bound is too hopeful"
    return "gains have become more frequent, the bound is cautious" if rarer < 0.1 else "no sign that p has changed"
