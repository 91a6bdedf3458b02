"""From a campaign to all that the page shows: plain numbers and strings, in the page's order."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from arl_core import theory
from arl_core.config import CampaignConfig
from arl_core.edit import changed_constants, levers, named_path
from arl_core.records import Experiment, one_line, utc_now, visible
from arl_core.report import evidence, findings, words
from arl_core.report.cautions import cautions
from arl_core.report.figures import duration
from arl_core.report.findings import Answer
from arl_core.report.source import CampaignData
from arl_core.report.style import WORDS
from arl_core.report.words import number, percent, signed
from arl_core.second_look import gain_over
from frozen_env.contract import Status
from frozen_env.description import BUILT_IN
from frozen_env.files import split_marked

MOST_IMPROVEMENTS = 15
MOST_IN_HERO = 8
MOST_SETTINGS = 200
MEMORY = CampaignConfig.model_fields["memory"].default  # where commands look unless told
REASON_CHARS = 300
SUMMARY_CHARS = 160
SECTIONS = (
    ("changed", "what changed"),
    ("care", "read with care"),
    ("search", "the search"),
    ("lineage", "lineage"),
    ("runs", "runs and stops"),
    ("statuses", "endings"),
    ("levers", "levers"),
    ("policy", "policy"),
    ("time", "time"),
    ("outlook", "going on"),
    ("all", "all experiments"),
    ("again", "do it again"),
)


def build(data: CampaignData) -> dict[str, Any]:
    """Return the page's content, figures apart."""
    campaign, experiments = data.campaign, data.experiments
    found = findings.answer(experiments)
    saved = findings.savings(experiments, data.budget_s)
    parts = findings.time_by_part(experiments)
    points = findings.learning(experiments)
    wall_clock_s = findings.wall_clock_s(experiments)
    inside, checked = evidence.forecast_check(experiments, {one.index: one.verdicts for one in experiments})
    steps = findings.improvements(experiments)
    largest = sorted(steps, key=lambda step: -step.gain)[:MOST_IMPROVEMENTS]
    outlook = _outlook(data, found, wall_clock_s / max(1, len(experiments)))
    content: dict[str, Any] = {
        "campaign": _campaign(data),
        "hero": _hero(found, data),
        "tiles": _tiles(data, saved, parts, outlook),
        "changed": _changed(found),
        "cautions": cautions(found, experiments, findings.noise_sd(experiments)),
        "improvements": [_improvement(step) for step in sorted(largest, key=lambda step: step.experiment.index)],
        "improvements_left_out": len(steps) - len(largest),
        "lineage": [_generation(generation) for generation in findings.lineage(experiments)],
        "curves_note": _curves_note(experiments),
        "forecast_note": words.forecast_note(inside, checked),
        "savings_note": words.savings_note(saved),
        "statuses": _statuses(experiments),
        "levers": [_lever(effect) for effect in findings.lever_effects(experiments)],
        "learning_note": words.learning_note(points),
        "time_note": words.time_note(parts, len(experiments), wall_clock_s),
        "outlook": outlook,
        "rows": [_row(one) for one in experiments],
        "commands": _commands(data, found),
        "settings": _settings(campaign.config)[:MOST_SETTINGS],
        "status_words": {status.value: text for status, text in WORDS.items()},
        "written": _to_the_minute(utc_now()),
    }
    has_reports = any(one.reports for one in experiments)
    present = {
        "changed": bool(content["changed"]["constants"] or content["changed"]["places"]),
        "care": bool(content["cautions"]),
        "lineage": bool(content["lineage"]),
        "runs": has_reports,
        "levers": bool(content["levers"]),
        "outlook": bool(outlook),
    }
    content["contents"] = [(anchor, text) for anchor, text in SECTIONS if present.get(anchor, True)]
    return content


def _hero(found: Answer, data: CampaignData) -> dict[str, Any]:
    """The answer, with the changes that fit beside it."""
    changed = _changed(found)
    told = [f"{name} {was} → {becomes}" for name, was, becomes in changed["constants"]] + changed["places"]
    shown = told[:MOST_IN_HERO]
    answer = words.hero(found, data.metric, data.campaign.direction, data.experiments)
    return {"best": None, **answer, "what": shown, "more": len(told) - len(shown)}


def epsilons(data: CampaignData) -> list[float]:
    """The gains that the outlook speaks of: any, and parts of the reward's scale, the gain that the campaign calls large."""
    scale = float((data.campaign.config.get("reward") or {}).get("scale") or 0.0)
    return [0.0, scale / 4, scale / 2, scale] if scale > 0 else [0.0]


def _campaign(data: CampaignData) -> dict[str, Any]:
    campaign, experiments = data.campaign, data.experiments
    sandboxes = sorted({one.sandbox for one in experiments if one.sandbox})
    last = max((one.created_at for one in experiments if one.created_at), key=datetime.fromisoformat, default="")
    return {
        "id": one_line(campaign.id, 80),
        "preset": one_line(campaign.preset, 40),
        "seed": campaign.seed,
        "started": _to_the_minute(campaign.started_at),
        "status": campaign.status,
        "running": campaign.status == "running" and not data.cut_off,
        "cut_off": words.cut_off(len(experiments), _to_the_minute(last)) if data.cut_off else "",
        "go_on": _go_on(data),
        "reason": one_line(data.reason, REASON_CHARS),
        "digest": one_line(campaign.environment_digest, 40),
        "sandbox": one_line(", ".join(sandboxes), 80) or "not recorded",
    }


def _to_the_minute(at: str) -> str:
    """A record's time for a reader; "" for none."""
    return at[:16].replace("T", " ") + " UTC" if at else ""


def _tiles(
    data: CampaignData,
    saved: findings.Savings,
    parts: dict[str, float],
    outlook: dict[str, Any] | None,
) -> list[dict[str, str]]:
    experiments = data.experiments
    counts = Counter(one.status for one in experiments)
    failed = sum(counts[status] for status in Status if status not in findings.RAN)
    proposals = max(0, len(experiments) - 1)
    tiles = [
        _tile("experiments", str(proposals), f"in {duration(_wall_s(experiments, parts))}"),
        _tile("improvements", str(len(findings.improvements(experiments))), "each beat the incumbent"),
        _tile("training saved", duration(saved.saved_s), f"{saved.throughput:.2f}× throughput"),
        _tile("without a value", str(failed), "crashed, refused, timed out"),
        _tile("policy updates", str(sum("update" in one.extra for one in experiments)), "PPO steps"),
    ]
    if outlook:
        tiles.append(_tile("for another gain", outlook["rows"][0]["predictive"], "experiments, with 95 %"))
    return tiles


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _wall_s(experiments: Sequence[Experiment], parts: dict[str, float]) -> float:
    """From the first experiment's beginning to the last's end where times are recorded, else the sum of the parts."""
    made = [datetime.fromisoformat(one.created_at) for one in experiments if one.created_at]
    if len(made) < 2:
        return sum(parts.values())
    return (max(made) - min(made)).total_seconds() + experiments[0].costs.get("iteration", 0.0)


def _changed(found: Answer) -> dict[str, Any]:
    if not found.improved or found.start is None or found.best is None:
        return {"constants": [], "places": [], "diff": []}
    old, new = found.start.source, found.best.source
    constants = changed_constants(old, new)
    places = [name for name in levers(old, found.diff) if name not in constants]
    return {
        "constants": [
            (one_line(name, 60), one_line(was or "not there", 80), one_line(becomes or "removed", 80))
            for name, (was, becomes) in constants.items()
        ],
        "places": [one_line(place, 80) for place in places],
        "diff": words.diff_lines(found.diff),
    }


def _improvement(step: findings.Improvement) -> dict[str, Any]:
    one = step.experiment
    return {
        "index": one.index,
        "summary": one_line(one.summary, SUMMARY_CHARS),
        "before": number(step.before),
        "after": number(step.after),
        "gain": signed(_as_change(step.gain, one)),
        "confirmations": one.confirmations if step.confirmed else 0,
        "diff": words.diff_lines(one.diff),
        "parent": one.parent_index,
    }


def _generation(generation: findings.Generation) -> dict[str, Any]:
    one = generation.experiment
    tried = [f"{count} {WORDS[status]}" for status, count in generation.tried.most_common()]
    return {
        "index": one.index,
        "summary": one_line(one.summary, SUMMARY_CHARS),
        "value": number(one.figure),
        "gain": signed(_as_change(generation.gain, one)) if generation.gain else "",
        "confirmations": one.confirmations if one.repeated else 0,
        "tried": f"tried on top of it: {', '.join(tried)}" if tried else "nothing tried on top of it yet",
        "diff": words.diff_lines(one.diff),
    }


def _as_change(gain: float, one: Experiment) -> float:
    """A gain as the metric's own movement: negative where lower is better."""
    return -gain if one.direction == "lower" else gain


def _curves_note(experiments: Sequence[Experiment]) -> str:
    with_curve = sum(bool(one.reports) for one in experiments)
    if with_curve <= evidence.MOST_CURVES:
        return ""
    return f"{evidence.MOST_CURVES} of {with_curve} curves are drawn: kept runs and the latest others."


def _statuses(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    rows = []
    for status in WORDS:
        some = [one for one in experiments if one.status is status]
        if not some:
            continue
        reasons = Counter(one_line(one.reason, 140) for one in some if one.reason).most_common(1)
        reason = (
            f"{reasons[0][0]} ({reasons[0][1]}×)" if reasons and reasons[0][1] > 1 else reasons[0][0] if reasons else ""
        )
        share = percent(len(some) / len(experiments))
        rows.append({"status": status.value, "count": len(some), "share": share, "reason": reason})
    return rows


def _lever(effect: findings.LeverEffect) -> dict[str, Any]:
    return {
        "name": one_line(effect.name, 60),
        "tried": effect.tried,
        "ran": effect.ran,
        "improved": effect.improved,
        "mean": signed(effect.mean_gain),
        "error": number(effect.standard_error),
        "best": signed(effect.best_gain),
    }


def _outlook(data: CampaignData, found: Answer, each_s: float) -> dict[str, Any] | None:
    """The theory's part; None before the first proposal on a scored start."""
    won = findings.gains(data.experiments)
    steps = findings.staircase(data.experiments)
    if not won:
        return None
    rates = [theory.improvement_rate(won, epsilon) for epsilon in epsilons(data)]
    process = theory.best_so_far(steps[0][1], won, data.campaign.direction)
    return {
        "headline": words.outlook_headline(rates[0], data.metric),
        "rows": [words.rate_row(rate, each_s) for rate in rates],
        "assumptions": words.assumptions(
            theory.drift(won, 0.0), found.confirmed, process, sum(gain < 0 for gain in won)
        ),
    }


def _row(one: Experiment) -> dict[str, Any]:
    value = one.figure
    shown = number(value) if value is not None else f"~{number(one.estimate)}" if one.estimate is not None else "–"
    height = value if value is not None else one.estimate
    gain = None
    if height is not None and one.incumbent_value is not None:
        gain = gain_over(height, one.incumbent_value, one.direction)
    trained_s = one.costs.get("training")
    return {
        "index": one.index,
        "status": one.status.value,
        "value": shown,
        "gain": signed(gain),
        "reward": signed(one.reward, 2),
        "trained": f"{trained_s:.0f} s" if trained_s is not None else "–",
        "parent": "–" if one.parent_index is None else f"#{one.parent_index}",
        "summary": one_line(one.summary, SUMMARY_CHARS),
        "reason": one_line(one.reason, 120),
    }


def _commands(data: CampaignData, found: Answer) -> list[str]:
    name = one_line(data.campaign.id, 80)
    lines = [
        f"python -m flows.report {name} --export-best best/     # the best program, its diff, a review sheet",
        f"{_go_on(data)} --iterations N     # go on",
    ]
    if found.best is not None:
        lines.insert(
            1,
            f"python -m frozen_env run {_again(data, found)} --seed {data.campaign.seed + 1001} --out /tmp/again     # a new seed",
        )
    return lines


def _go_on(data: CampaignData) -> str:
    """The command that resumes the campaign; by its id, as another may be the latest when the page is read."""
    campaign = data.campaign
    memory = one_line(str(campaign.config.get("memory") or MEMORY), 200)
    where = "" if memory == MEMORY else f" --set memory={shlex.quote(memory)}"
    return (
        f"python -m flows.research --preset {one_line(campaign.preset, 40)} --resume {one_line(campaign.id, 80)}{where}"
    )


def _again(data: CampaignData, found: Answer) -> str:
    """The words of a command that run the exported program in its environment."""
    assert found.best is not None
    problem = str(dict(data.campaign.config.get("environment") or {}).get("problem", BUILT_IN))
    several = split_marked(found.best.source) is not None
    source = "best" if several else f"best/{Path(named_path(found.best.diff, found.best.source)).name}"
    where = (
        f"--preset {one_line(data.campaign.preset, 40)}"
        if problem == BUILT_IN
        else f"--problem {one_line(problem, 80)}"
    )
    return f"--source {one_line(source, 80)} {where}"


def _settings(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat += (
            _settings(value, f"{name}.") if isinstance(value, dict) else [(visible(name), one_line(str(value), 200))]
        )
    return flat
