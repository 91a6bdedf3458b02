"""What MLflow is told of an experiment: numbers, tags and text files, from the record alone. Knows no MLflow."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from arl_core.edit import levers_seen_from
from arl_core.records import BEST_AFTER, Experiment, one_line
from arl_core.second_look import best_after
from arl_core.selfeval.curve import thin
from frozen_env.contract import Status

CURVE_POINTS = 120  # a longer curve is thinned: a metric costs 0.2 ms, and curve.json has every point
LOG_BYTES = 2**20  # of a run's log, its end

Point = tuple[str, float, int, int]  # key, value, time in ms, step


def metrics_of(experiment: Experiment) -> list[Point]:
    """Every number of the record, single ones first, then the curves by step; missing ones are left out."""
    metric, at = experiment.metric or "value", milliseconds(experiment.created_at)
    single: dict[str, Any] = {
        metric: experiment.value,
        f"{metric}_estimate": experiment.estimate,
        f"{metric}_incumbent": experiment.incumbent_value,
        confirmed_key(experiment): experiment.confirmed_value,
        "confirmations": experiment.confirmations or None,
        "reward": experiment.reward,
        "peak_memory_mb": experiment.peak_memory_mb or None,
        "tokens": experiment.tokens or None,
        "policy_step": experiment.policy_step,
    }
    single |= {f"reward/{name}": value for name, value in experiment.reward_terms.items() if name != "reward"}
    single |= {f"seconds/{name}": value for name, value in experiment.costs.items()}
    single |= {f"policy/{name}": value for name, value in dict(experiment.extra.get("update") or {}).items()}
    single |= {f"run/{name}": value for name, value in dict(experiment.extra.get("performance") or {}).items()}
    single |= {f"confirm/{name}": value for name, value in dict(experiment.extra.get("confirmation") or {}).items()}
    points: list[Point] = [(key, float(value), at, 0) for key, value in single.items() if _is_number(value)]
    began = started_ms(experiment)
    for report in thin(experiment.reports, CURVE_POINTS):
        now = began + int(1000 * report.elapsed_s)
        points.append(("train_loss", report.loss, now, report.step))
        if report.lr is not None:
            points.append(("lr", report.lr, now, report.step))
    for verdict in experiment.verdicts:
        percent = round(100 * verdict.fraction)  # forecasts are drawn over the share of the budget
        told = {"forecast": verdict.forecast, "forecast_low": verdict.low, "forecast_high": verdict.high}
        told["p_improve"] = verdict.p_improve
        points += [(key, float(value), at, percent) for key, value in told.items() if value is not None]
    return points


def campaign_metrics_of(experiment: Experiment) -> list[Point]:
    """What the campaign's own run shows over its experiments: the best so far, and the policy's reward."""
    at, metric = milliseconds(experiment.created_at), experiment.metric or "value"
    value, confirmed = experiment.value, experiment.confirmed_value if experiment.confirmations else None
    best = best_after(experiment.incumbent_value, experiment.status, value, confirmed, experiment.direction)
    # Side by side the incumbent of the proposal may be long gone; experiment 0 and records of earlier versions know no other.
    best = experiment.extra.get(BEST_AFTER, best)
    told = {f"best_{metric}": best, metric: value, "reward": experiment.reward}
    told |= {f"policy/{name}": number for name, number in dict(experiment.extra.get("update") or {}).items()}
    return [(key, float(number), at, experiment.index) for key, number in told.items() if _is_number(number)]


def tags_of(experiment: Experiment) -> dict[str, str]:
    parent = "" if experiment.parent_index is None else str(experiment.parent_index)
    return settled_tags(experiment) | {
        "summary": one_line(experiment.summary, 300),
        "parent_experiment": parent,
        "levers": one_line(", ".join(levers_seen_from(experiment.source, experiment.diff)), 300),
        "source_hash": experiment.source_hash,
        "sandbox": experiment.sandbox,
        "repairs": ", ".join(experiment.repairs),
        "environment_digest": experiment.environment_digest,
        "seed": str(experiment.seed),
    }


SETTLED = ("status", "cause", "reason", "confirmed")


def settled_tags(experiment: Experiment) -> dict[str, str]:
    """What re-runs done for a later experiment may change of an earlier one that was kept."""
    return {
        "status": experiment.status.value,
        "cause": experiment.cause.value,
        "reason": one_line(experiment.reason, 300),
        "confirmed": confirmed_tag(experiment),
    }


def confirmed_key(experiment: Experiment) -> str:
    return f"{experiment.metric or 'value'}_confirmed"


def confirmed_tag(experiment: Experiment) -> str:
    """`4 runs` for what was kept after re-runs, `no, 4 re-runs` for what did not pass them, `no` without any."""
    if not experiment.confirmations:
        return "no"
    kept = experiment.status is Status.KEPT
    return f"{experiment.confirmations} runs" if kept else f"no, {experiment.confirmations} re-runs"


def write_artifacts(experiment: Experiment, scratch: Path, folder: Path | None) -> None:
    """Text files only, none of them HTML: MLflow's page shows them as text, whatever a candidate wrote."""
    texts = {
        "diff.patch": experiment.diff,
        "train.py": experiment.source,
        "prompt.txt": experiment.prompt,
        "completion.txt": experiment.completion,
        "log.txt": _log(experiment, folder),
    }
    record = experiment.to_json()
    if experiment.verdicts:
        texts["forecast.json"] = json.dumps(record["verdicts"], indent=1)
    if experiment.reports:
        texts["curve.json"] = json.dumps(record["reports"])
    bulky = ("verdicts", "reports", "diff", "source", "prompt", "completion", "log")
    texts["record.json"] = json.dumps({key: value for key, value in record.items() if key not in bulky}, indent=1)
    for name, text in texts.items():
        if text:
            (scratch / name).write_text(text, encoding="utf-8", errors="replace")


def _log(experiment: Experiment, folder: Path | None) -> str:
    """The end of the run's log file, or the record's tail of it."""
    if folder is None:
        return experiment.log
    try:
        with (folder / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return experiment.log


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def milliseconds(moment: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time; 0 when there is none."""
    return int(1000 * datetime.fromisoformat(moment).timestamp()) if moment else 0


def started_ms(experiment: Experiment) -> int:
    """When the experiment began. From the record alone, so that writing a run twice writes the same."""
    return max(0, milliseconds(experiment.created_at) - int(1000 * experiment.costs.get("iteration", 0.0)))
