"""Replay stopping rules on recorded curves: how much they save, and how often they lose the best run.

    python -m bench.stopping --curves CURVES.parquet --order random --episodes 300 --json
    python -m bench.stopping --curves CURVES.parquet --order improving --history EARLIER.parquet --json
    python -m bench.stopping --curves CURVES.parquet --order random --split 4 --json     # cross-validated by group

The protocol is in docs/stopping.md. Curves are a parquet file (group, run_id, time_s, train_loss, val_loss) or a
campaign's memory (DuckDB). Shapes: R runs, L = 19 looks at 1/20 … 19/20 of a run's time.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arl_core.selfeval.curve import Curve, levels, levels_and_errors
from arl_core.selfeval.forecast import FIRST_LOOK, PAST
from arl_core.selfeval.judge import prepare
from arl_core.selfeval.naive import power_law
from arl_core.selfeval.snapshot import DEFAULT_ALPHA, DEFAULT_AUDIT_SHARE, PastRun, Snapshot
from frozen_env.contract import Status

LOOKS = tuple(k / 20 for k in range(1, 20))
RULES = ("none", "naive", "median", "hyperband", "ours")
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.999, 0.99999)
EPISODE_RUNS, WHOLE_RUNS = 60, 4
LOST_NATS = 0.003  # a kept best that is worse by more has been lost


@dataclass(frozen=True)
class Run:
    """One recorded run, everything that a rule may need at each look worked out once."""

    group: str
    final: float
    past: PastRun
    level_LP: np.ndarray  # levels now and at the shares PAST of the elapsed time
    error_L: np.ndarray  # standard error of the level now
    last_L: np.ndarray  # the last loss seen, as optuna's pruners are told it; NaN before any
    naive_L: np.ndarray  # the paper's forecast; NaN where it has too few points


def load(path: Path) -> list[Run]:
    """Read recorded runs, sorted by group and name. ValueError when none has a final result."""
    if path.suffix in (".duckdb", ".db"):
        return _load_memory(path)
    import duckdb

    rows = duckdb.sql(
        f"""select "group", run_id, time_s, train_loss, val_loss from read_parquet('{str(path).replace("'", "''")}')
        order by 1, 2, 3, step"""
    ).fetchall()
    points: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for group, run_id, time_s, train_loss, val_loss in rows:
        run = points.setdefault((group, run_id), [])
        run += [(time_s, loss, held) for loss, held in ((train_loss, False), (val_loss, True)) if loss is not None]
    runs = []
    for (group, _), run in points.items():
        point_N3 = np.array(run, dtype=np.float64).reshape(-1, 3)
        time_s_N, held_out_N = point_N3[:, 0], point_N3[:, 2] > 0
        if not held_out_N.any():
            continue  # never measured: nothing to replay against
        curve = Curve.from_points(time_s_N / time_s_N.max(), point_N3[:, 1], held_out_N)
        runs.append(_run(group, curve, float(point_N3[held_out_N, 1][-1])))
    if not runs:
        raise ValueError(f"no run with a held-out loss in {path}")
    return runs


def _load_memory(path: Path) -> list[Run]:
    """Read the measured runs of a memory file, each campaign a group; finals are put in nats per token."""
    from arl_core.memory import Memory

    memory = Memory(path, read_only=True)
    measured = [
        (campaign, Curve.from_reports(e.reports), e.value)
        for campaign in memory.campaigns()
        for e in memory.experiments(campaign.id)
        if e.status in (Status.KEPT, Status.DISCARDED) and e.value is not None and e.reports and e.direction == "lower"
    ]
    if len({campaign.environment_digest for campaign, _, _ in measured}) > 1:
        raise ValueError(
            f"{path} holds runs of different frozen environments, which no rule compares; give one with one"
        )
    ends = [levels(curve, np.array([1.0]))[0] for _, curve, _ in measured]  # NaN: no report of use
    whole = [(c.id, curve, value, end) for (c, curve, value), end in zip(measured, ends, strict=True) if end > 0]
    if not whole:
        raise ValueError(f"{path} holds no run that trained to its end and was measured")
    per_nat = np.median([value / end for _, _, value, end in whole])
    return [_run(campaign, curve, float(value / per_nat)) for campaign, curve, value, _ in whole]


def _run(group: str, curve: Curve, final: float) -> Run:
    last_L, naive_L = np.full(len(LOOKS), np.nan), np.full(len(LOOKS), np.nan)
    for k, look in enumerate(LOOKS):
        seen = curve.until(look)
        shown = seen.loss_N[seen.held_out_N] if seen.held_out_N.any() else seen.loss_N
        last_L[k] = shown[-1] if len(shown) else np.nan
        forecast = power_law(seen)
        naive_L[k] = np.nan if forecast is None else forecast
    seen_L2P = np.array(
        [levels_and_errors(curve.until(f), np.array([f, *(f * share for share in PAST)])) for f in LOOKS]
    )
    past = PastRun.from_curve(curve, final, group)
    return Run(group, final, past, seen_L2P[:, 0], seen_L2P[:, 1, 0], last_L, naive_L)


def draw(runs: Sequence[Run], order: str, episodes: int, seed: int) -> list[np.ndarray]:
    """Draw the episodes: which runs, in which order; all of them when the file holds fewer than an episode wants."""
    size = min(EPISODE_RUNS, len(runs))
    if size <= WHOLE_RUNS:
        raise ValueError(f"an episode needs more than {WHOLE_RUNS} runs, the file has {len(runs)}")
    rng = np.random.default_rng(seed)
    final_R = np.array([run.final for run in runs])
    drawn = []
    for _ in range(episodes):
        index = rng.choice(len(runs), size, replace=False)
        if order == "improving":
            rank = np.empty(size)
            rank[np.argsort(-final_R[index], kind="stable")] = np.arange(size)
            index = index[np.argsort(rank + rng.normal(0, 0.35 * size, size), kind="stable")]
        drawn.append(index)
    return drawn


# A rule is told of each episode's start and gives back: stop(run, look index, completed runs) -> bool
Stop = Callable[[Run, int, list[Run]], bool]


def rule_none() -> Stop:
    return lambda run, look, completed: False


def rule_naive() -> Stop:
    return lambda run, look, completed: bool(run.naive_L[look] > min(r.final for r in completed))


def rule_optuna(kind: str, episode: int) -> Stop:
    """Ask optuna's MedianPruner or HyperbandPruner, telling it the last loss at each look."""
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=WHOLE_RUNS, n_warmup_steps=0),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=20, reduction_factor=3),
    }
    sampler = optuna.samplers.RandomSampler(0)
    study = optuna.create_study(pruner=pruners[kind](), sampler=sampler, study_name=f"e{episode}")
    state: dict[str, Any] = {"run": None, "trial": None, "told": 0}

    def tell(run: Run) -> None:
        trial = study.ask()
        for k, loss in enumerate(run.last_L):
            if np.isfinite(loss):
                trial.report(float(loss), k + 1)
        study.tell(trial, run.final)

    def stop(run: Run, look: int, completed: list[Run]) -> bool:
        while state["told"] < len(completed):
            if completed[state["told"]] is state["run"]:
                study.tell(state["trial"], state["run"].final)
            else:
                tell(completed[state["told"]])
            state["told"] += 1
        if state["run"] is not run:
            state["run"], state["trial"] = run, study.ask()
        if np.isfinite(run.last_L[look]):
            state["trial"].report(float(run.last_L[look]), look + 1)
        pruned = bool(state["trial"].should_prune())
        if pruned:
            study.tell(state["trial"], state=optuna.trial.TrialState.PRUNED)
        return pruned

    return stop


def rule_ours(alpha: float, history: tuple[PastRun, ...], audit_share: float = 0.0, episode: int = 0) -> Stop:
    """The verdict of arl_core.selfeval; a forecaster is fitted whenever a run has completed.

    A share of the runs is drawn for the audit: these it may not stop. What the others cost is in the throughput too.
    """
    fitted: dict[int, Any] = {}
    rng, audited, let_live = np.random.default_rng([20261127, episode]), dict[int, bool](), set[int]()

    def past(run: Run) -> PastRun:
        known = 1 / audit_share if id(run) in let_live else 1.0
        return replace(run.past, stands_for=known, sampled=audited.get(id(run), True))

    def stop(run: Run, look: int, completed: list[Run]) -> bool:
        if LOOKS[look] < FIRST_LOOK:
            return False
        is_audited = audited.setdefault(id(run), bool(rng.random() < audit_share))
        if len(completed) not in fitted:
            runs = [*history, *(past(r) for r in completed)]
            fitted[len(completed)] = prepare(Snapshot.build(runs, loss_scale=1.0, alpha=alpha, checks=LOOKS))
        forecaster = fitted[len(completed)]
        p_tie = forecaster.p_tie(run.level_LP[look], LOOKS[look], float(run.error_L[look]))
        if p_tie >= forecaster.stop_below(LOOKS[look]):
            return False
        if is_audited:
            let_live.add(id(run))
            return False
        return True

    return stop


def play(runs: Sequence[Run], stop: Stop) -> tuple[float, float, int, int]:
    """Run one episode. Returns (full-run equivalents spent, regret in nats, improving runs met, those stopped)."""
    completed: list[Run] = []
    spent, best, improving, killed = 0.0, np.inf, 0, 0
    for n, run in enumerate(runs):
        looks = range(len(LOOKS)) if n >= WHOLE_RUNS else ()
        stopped_at = next((LOOKS[k] for k in looks if stop(run, k, completed)), None)
        improving += n >= WHOLE_RUNS and run.final < best
        killed += stopped_at is not None and run.final < best
        spent += stopped_at or 1.0
        if stopped_at is None:
            completed.append(run)
            best = min(best, run.final)
    return spent, best - min(run.final for run in runs), improving, killed


def measure(runs: Sequence[Run], episodes: list[np.ndarray], make: Callable[[int], Stop]) -> dict[str, float]:
    """Replay a rule over all episodes. false_kill is the share of improving runs that were stopped."""
    played = np.array([play([runs[k] for k in index], make(e)) for e, index in enumerate(episodes)])
    return {
        "throughput": round(float((len(episodes[0]) / played[:, 0]).mean()), 4),
        "best_lost": round(float((played[:, 1] > LOST_NATS).mean()), 4),
        "regret": round(float(played[:, 1].mean()), 6),
        "false_kill": round(float(played[:, 3].sum() / max(played[:, 2].sum(), 1)), 4),
    }


def oracle(runs: Sequence[Run], episodes: list[np.ndarray]) -> dict[str, float]:
    """Give the throughput of who knows the finals but may act only at one fraction: the ceiling."""
    size, whole_E = len(episodes[0]), []
    for index in episodes:
        final = np.array([runs[k].final for k in index])
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(final)[:-1]])
        whole_E.append(int(((np.arange(len(final)) < WHOLE_RUNS) | (final < best_before)).sum()))
    whole = np.array(whole_E)
    return {f"{f:.2f}": round(float((size / (whole + (size - whole) * f)).mean()), 4) for f in LOOKS}


def maker(rule: str, alpha: float, history: tuple[PastRun, ...], audit_share: float = 0.0) -> Callable[[int], Stop]:
    if rule == "ours":
        return lambda episode: rule_ours(alpha, history, audit_share, episode)
    if rule in ("median", "hyperband"):
        return lambda episode: rule_optuna(rule, episode)
    return lambda episode: {"none": rule_none, "naive": rule_naive}[rule]()


def replay(
    runs: Sequence[Run],
    order: str,
    episodes: int,
    seed: int,
    alpha: float,
    history: tuple[PastRun, ...],
    alphas: Sequence[float],
    names: Sequence[str] = RULES,
    audit_share: float = 0.0,
) -> dict[str, Any]:
    """Measure every named rule, the frontier over alpha and the oracle on one set of runs."""
    drawn = draw(runs, order, episodes, seed)
    rules = {rule: measure(runs, drawn, maker(rule, alpha, history, audit_share)) for rule in names}
    frontier = []
    for a in alphas:
        known = rules["ours"] if a == alpha and "ours" in rules else None
        got = known or measure(runs, drawn, maker("ours", a, history, audit_share))
        frontier.append([a, got["throughput"], got["best_lost"], got["regret"]])
    return {"rules": rules, "frontier": frontier, "oracle": oracle(runs, drawn)}


def earlier(history: Sequence[Run], curves: Sequence[Run]) -> tuple[PastRun, ...]:
    """Turn another file's runs into earlier campaigns; groups of the curves are dropped: no run is recognised."""
    groups = {run.group for run in curves}
    return tuple(replace(run.past, own=False) for run in history if run.group not in groups)


def split_by_group(runs: Sequence[Run], seed: int) -> tuple[list[Run], list[Run]]:
    """Split into two halves that share no group."""
    groups = sorted({run.group for run in runs})
    np.random.default_rng(seed).shuffle(groups)
    first: set[str] = set()
    for group in groups:
        if sum(run.group in first for run in runs) < len(runs) / 2:
            first.add(group)
    return [r for r in runs if r.group in first], [r for r in runs if r.group not in first]


def mean(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average equal-shaped results, leaf by leaf."""
    first = results[0]
    if isinstance(first, dict):
        return {key: mean([r[key] for r in results]) for key in first}
    if isinstance(first, list):
        return [mean([r[k] for r in results]) for k in range(len(first))]
    return round(float(np.mean(results)), 6)


def cross_validate(args: argparse.Namespace, runs: Sequence[Run], alphas: Sequence[float]) -> dict[str, Any]:
    """Replay on both halves of `split` random splits by group, the other half being the history if `cross_history`."""
    results = []
    for k in range(args.split):
        halves = split_by_group(runs, args.seed + k)
        for curves, other in (halves, halves[::-1]):
            history = earlier(other, curves) if args.cross_history else ()
            results.append(
                replay(
                    curves,
                    args.order,
                    args.episodes,
                    args.seed + k,
                    args.alpha,
                    history,
                    alphas,
                    args.rules,
                    args.audit_share,
                )
            )
    return {**mean(results), "halves": [r["rules"] for r in results]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench.stopping", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, required=True, help="parquet of curves, or a campaign's memory.duckdb")
    parser.add_argument("--history", type=Path, help="curves of earlier campaigns; groups of --curves are dropped")
    parser.add_argument("--order", choices=("random", "improving"), default="random")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--alpha", type=float, default=DEFAULT_ALPHA, help="of `ours`: how often a run that ties may be stopped"
    )
    parser.add_argument(
        "--audit-share", type=float, default=DEFAULT_AUDIT_SHARE, help="of the runs: `ours` may not stop them"
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="measure these only")
    parser.add_argument("--alphas", default=",".join(map(str, ALPHAS)), help="the frontier")
    parser.add_argument("--split", type=int, default=0, help="cross-validate on so many random halvings by group")
    parser.add_argument("--cross-history", action="store_true", help="with --split: the other half is the history")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(argv)
    alphas = [float(a) for a in args.alphas.split(",") if a]
    runs = load(args.curves)
    if args.split:
        result = cross_validate(args, runs, alphas)
    else:
        history = earlier(load(args.history), runs) if args.history else ()
        result = replay(
            runs, args.order, args.episodes, args.seed, args.alpha, history, alphas, args.rules, args.audit_share
        )
        result["history_runs"] = len(history)
    if not args.json:
        for rule, got in result["rules"].items():
            print(f"{rule:10s} " + "  ".join(f"{name} {value:g}" for name, value in got.items()))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
