"""Command line of the replay bench: runs what is missing, appends it to the results, prints the table.

python -m bench.replay --trials TRIALS.parquet --arms random,local,tpe,cmaes,greedy,rl --seeds 5 --hours 24 --json
  -> {"arms": {ARM: {"best_8h": [per seed], "best_24h": [per seed], "experiments": [...]}}, "paired": {...}, "surrogate": {...}}

best_Xh is val_bpb without noise of the incumbent, which was chosen under noise; best_mean is its mean over all hours: how good
and how soon. `experiments` are those that began within --hours; a last one that ended later changes no best. Numeric arms take
up to a minute a seed (local_critic, local's moves chosen among by the policy's critic, three), the language-model arms (greedy,
rl; ppo, critic and filter take rl apart) more; both resume: a finished arm and seed is read from --results, an unfinished one
goes on from its memory in --work, which is refused when it was made with other settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other when cores are shared

import numpy as np

from arl_core.config import parse_overrides
from arl_core.edit import read_constants
from arl_core.records import Experiment
from bench.replay.arms import NUMERIC, NUMERIC_CODE
from bench.replay.code import code_digest
from bench.replay.surrogate import Surrogate
from frozen_env.contract import ResearchError, Status

ROOT = Path(__file__).resolve().parents[2]
LANGUAGE = ("greedy", "rl", "ppo", "critic", "filter")
LEARNERS = ("rl", "ppo")
MIXED = " (made with different or unknown code: rerun both arms to compare)"
MARKS_H = (8, 24, 168)
MARK_WORDS = {"best_mean": "over the hours"}
# What entries mean that were recorded before their trials were a part of the key: nanochat_300s_trials.parquet.
BEFORE = {"trials": "d121c6b9d213fa612fe09a82775f8bf1727da6712e265b4215d8fcf6e224d815"}
Trace = list[tuple[float, float]]  # (hours, true val_bpb of the incumbent), one entry per new incumbent


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        result = bench(options)
    except (ResearchError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.json else table(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.replay", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--trials", type=Path, required=True, help="parquet file of recorded trials")
    parser.add_argument("--arms", default="random,local,tpe,cmaes,greedy,rl")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds: 0 to N-1, or from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=24.0, help="simulated GPU hours of each arm and seed")
    parser.add_argument("--edits-per-round", type=int, default=4, help="proposals from one state (language-model arms)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (language-model arms)"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "replay.json")
    parser.add_argument("--work", type=Path, default=ROOT / "mlruns" / "replay", help="memories of unfinished arms")
    parser.add_argument("--plot", type=Path, help="write best-so-far against hours there (PNG)")
    parser.add_argument("--json", action="store_true", help="print only the result as one JSON object, last")
    return parser


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing and return everything that was asked for."""
    arms = options.arms.split(",")
    unknown = sorted(set(arms) - set(NUMERIC) - set(LANGUAGE))
    if unknown:
        raise ValueError(f"unknown arm {unknown[0]!r}; there are: {', '.join([*NUMERIC, *LANGUAGE])}")
    if not options.trials.is_file():
        raise ValueError(f"no recorded trials at {options.trials}; name a parquet file with --trials")
    surrogate = Surrogate(options.trials)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    entries = [entry for seed in seeds for arm in arms for entry in [_entry(arm, seed, surrogate, options)]]
    if options.plot:
        from bench.replay.figure import draw

        draw(entries, options.plot)
    return {
        "arms": {arm: _columns([entry for entry in entries if entry["arm"] == arm]) for arm in arms},
        "paired": paired(entries, arms),
        "surrogate": dataclasses.asdict(surrogate.quality),
    }


def _entry(arm: str, seed: int, surrogate: Surrogate, options: argparse.Namespace) -> dict[str, Any]:
    """Return the finished result of one arm and seed: from the results file, or by running it."""
    settings = {"edits_per_round": options.edits_per_round, "set": sorted(options.set)} if arm in LANGUAGE else {}
    key = {"arm": arm, "seed": seed, "hours": options.hours, "settings": settings, "trials": surrogate.digest}
    found: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.is_file() else []
    for entry in found:
        if {name: (BEFORE | entry)[name] for name in key} == key:
            _say_if_old(entry, options)
            return in_time(entry)
    trace, counts = (
        _run_language(arm, seed, surrogate, options) if settings else _run_numeric(arm, seed, surrogate, options)
    )
    entry = in_time({**key, **counts, "trace": trace})
    _append(options.results, entry)
    if not options.json:
        print(f"{arm} seed {seed}: {entry['experiments']} experiments, best {entry['best']:.4f}", flush=True)
    return entry


def _say_if_old(entry: dict[str, Any], options: argparse.Namespace) -> None:
    """A result that is read may be of other code than the one that a reader has before him."""
    if entry["arm"] in LANGUAGE:
        from arl_core.config import load_config
        from bench.replay.language import made_with

        now = made_with(load_config("replay", parse_overrides(options.set)))
        then = entry.get("made_with", "unknown code")
    else:  # what was recorded before numeric arms said so passes unmarked
        now = code_digest(NUMERIC_CODE)
        then = entry.get("made_with", now)
    if then != now:
        told = f"{entry['arm']} seed {entry['seed']}: read, not run: made with {then}, now it is {now}"
        print(f"{told}; another --results runs it anew", file=sys.stderr, flush=True)


def _append(results: Path, entry: dict[str, Any]) -> None:
    """Add a result under a lock: arms run in processes of their own, and two may end together."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = json.loads(results.read_text()) if results.is_file() else []
        partial = results.with_suffix(".partial")
        partial.write_text("[\n" + ",\n".join(json.dumps(one) for one in [*found, entry]) + "\n]\n")
        partial.replace(results)


def _run_numeric(
    arm: str, seed: int, surrogate: Surrogate, options: argparse.Namespace
) -> tuple[Trace, dict[str, Any]]:
    search = NUMERIC[arm](surrogate.space, seed)
    setting, best_seen, spent_s, index, failed = next(search), float("inf"), 0.0, 0, 0
    trace: Trace = []
    while spent_s < options.hours * 3600:
        answer = surrogate.answer(setting, np.random.default_rng([seed, index]))
        spent_s, index = spent_s + answer.wall_s, index + 1
        failed += answer.seen_bpb is None
        if answer.seen_bpb is not None and answer.true_bpb is not None and answer.seen_bpb < best_seen:
            best_seen = answer.seen_bpb
            trace.append((spent_s / 3600, answer.true_bpb))
        setting = search.send(answer.seen_bpb)
    return trace, {"made_with": code_digest(NUMERIC_CODE), "experiments": index, "failed": failed}


def _run_language(
    arm: str, seed: int, surrogate: Surrogate, options: argparse.Namespace
) -> tuple[Trace, dict[str, Any]]:
    from bench.replay.language import LanguageArm

    one = LanguageArm(
        surrogate=surrogate,
        folder=options.work / f"{arm}-{seed}",
        seed=seed,
        name=arm,
        edits_per_round=options.edits_per_round,
        overrides=parse_overrides(options.set),
        say=(lambda _line: None) if options.json else (lambda line: print(f"{arm} seed {seed}: {line}", flush=True)),
    )
    experiments = one.run(options.hours)
    statuses = [experiment.status for experiment in experiments]
    counts = {status.value: statuses.count(status) for status in set(statuses)}
    return trace_of(experiments, surrogate), {
        "made_with": one.made_with,
        "experiments": len(experiments),
        "failed": statuses.count(Status.CRASHED),
        **counts,
        **by_quarter(experiments),
        **last_update(experiments),
    }


def by_quarter(experiments: list[Experiment]) -> dict[str, list[float]]:
    """Return how proposals fared in the four quarters of their number: their mean reward, and the share that trained.

    What a policy learns shows there first, whether or not the best value follows. The untouched target is no proposal.
    """
    quarters = [part for part in np.array_split(np.array(experiments[1:], dtype=object), 4) if len(part)]
    return {
        "reward_by_quarter": [float(np.mean([one.reward for one in part])) for part in quarters],
        "trained_by_quarter": [float(np.mean([one.value is not None for one in part])) for part in quarters],
    }


def last_update(experiments: list[Experiment]) -> dict[str, float]:
    """Return how far the last update left the policy from its warm start (kl_ref, nats a token) and how undecided (entropy)."""
    updates = [found for one in experiments if (found := one.extra.get("update"))]
    return {name: float(updates[-1][name]) for name in ("kl_ref", "entropy") if updates and name in updates[-1]}


def trace_of(experiments: list[Experiment], surrogate: Surrogate) -> Trace:
    """Return when each new incumbent came and what it is truly worth."""
    spent_s, best_seen, trace = 0.0, float("inf"), []
    for one in experiments:
        spent_s += one.costs["simulated"]
        if one.status is Status.KEPT and one.value is not None and one.value < best_seen:
            best_seen = one.value
            true_bpb = surrogate.true_value(read_constants(one.source))
            assert true_bpb is not None, "a kept experiment was answered with a value"
            trace.append((spent_s / 3600, true_bpb))
    return trace


def in_time(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with its trace cut at its hours and the marks read from that: a last trial may end later."""
    hours = entry["hours"]
    trace = [(when, value) for when, value in entry["trace"] if when <= hours]
    if not trace:
        raise ValueError(
            f"{entry['arm']} seed {entry['seed']}: no trial ended well within {hours:g} h; give more --hours"
        )

    def at(mark_h: float) -> float | None:
        return next((value for when, value in reversed(trace) if when <= mark_h), None)

    marks = {f"best_{mark}h": at(mark) for mark in MARKS_H if mark <= hours} | {"best": at(hours)}
    return {**entry, **marks, "best_mean": mean_over(trace, hours), "trace": trace}


def mean_over(trace: Trace, hours: float) -> float:
    """Return the incumbent's value averaged over the time from the first incumbent to `hours`."""
    if len(trace) == 1 or trace[0][0] == hours:
        return trace[0][1]
    ends = [when for when, _ in trace[1:]] + [hours]
    held = [(end - when) * value for (when, value), end in zip(trace, ends, strict=True)]
    return sum(held) / (hours - trace[0][0])


def _columns(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = [name for name in entries[0] if name.startswith("best_")]
    return {name: [entry[name] for entry in entries] for name in [*names, "experiments", "failed", "seed"]}


def paired(entries: list[dict[str, Any]], arms: list[str]) -> dict[str, dict[str, Any]]:
    """Return mean and standard error over seeds of an arm that learns (rl, ppo) minus each other arm, at their hours' end
    and at the marks on the way; negative: the one that learns is better.

    `mixed`: the two language-model arms were not made with one code and number type, or it is not known, so that a part of
    the difference may be theirs.
    """
    of = {(entry["arm"], entry["seed"]): entry for entry in entries}
    result = {}
    for learner, arm in itertools.product(LEARNERS, arms):
        seeds = [seed for (one, seed) in of if one == arm and (learner, seed) in of]
        if arm == learner or not seeds or (learner, arm) == ("ppo", "rl"):
            continue
        both = [(of[learner, seed], of[arm, seed]) for seed in seeds]
        found = result[f"{learner} - {arm}"] = _gap(both, "best")
        found["marks"] = {
            mark: _gap(both, mark)
            for mark in (*(f"best_{hours}h" for hours in MARKS_H), "best_mean")
            if all(one.get(mark) is not None for pair in both for one in pair)
        }
        if arm in LANGUAGE:
            code = {one.get("made_with") for pair in both for one in pair}
            found["mixed"] = len(code) > 1 or None in code
    return result


def _gap(both: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> dict[str, Any]:
    gaps = np.array([mine[name] - theirs[name] for mine, theirs in both])
    error = float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None
    return {"mean": float(gaps.mean()), "standard_error": error, "seeds": len(gaps)}


def table(result: dict[str, Any]) -> str:
    lines = []
    for arm, columns in result["arms"].items():
        figures = [
            f"{name} {np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else float('nan'):.4f}"
            for name, values in columns.items()
            if name.startswith("best_") and None not in values
        ]
        lines.append(f"{arm:8} {'  '.join(figures)}  experiments {np.mean(columns['experiments']):.0f}")
    for name, gap in result["paired"].items():
        words = [
            f"{MARK_WORDS.get(mark, mark.removeprefix('best_'))} {_told(one)}" for mark, one in gap["marks"].items()
        ]
        words = words or [_told(gap)]
        lines.append(f"{name}: {', '.join(words)}, {gap['seeds']} seeds{MIXED if gap.get('mixed') else ''}")
    return "\n".join(lines)


def _told(gap: dict[str, Any]) -> str:
    """Mean ± standard error."""
    return f"{gap['mean']:+.4f}" + ("" if gap["standard_error"] is None else f" ± {gap['standard_error']:.4f}")


if __name__ == "__main__":
    sys.exit(main())
