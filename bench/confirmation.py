"""Does a best survive a second look? Simulated campaigns, in pure noise and with some candidates that are truly better.

    python -m bench.confirmation --campaigns 2000 --json
    python -m bench.confirmation --campaigns 2000 --noise TRIALS.parquet --json      # residuals of real repeated trials
    python -m bench.confirmation --preset embedded --experiments 8 --json            # what a short campaign can promise
    python -m bench.confirmation --nights 15 --rules ours --campaigns 500 --json     # a campaign that goes on each night

A file has a true value and a noise; a run is its true value + what the seed does to every file (--seed-effect) + noise. The
unit is σ, the noise's standard deviation (with --noise: of the median file). In pure noise every candidate is exactly level
with the incumbent. In a realistic campaign a candidate is better by 1 to 3 σ with probability --better, level with
probability 0.3, else worse by an exponential of mean 3 σ. `ours` is arl_core.confirm with the preset's settings; the same
first runs, second look and spending serve the other tests, so that they differ in the test alone:

    any      keep any better single run, no re-run (what most loops do)
    mean4    re-run what is better three times, keep it if its paired mean is better
    fixed    one look, after --fixed pairs, with Student's t
    e-value  a safe t-test: likelihood ratio against an improvement of 1.5 σ, a look after every pair
    pooled   ours, but sure that all files are equally noisy
    own      ours, but blind to the noise of other files

--noise takes a parquet file of trials (UPPERCASE columns: the configuration; val_bpb) and plays three kinds of noise: `pooled`
residuals, `file`: each file has the residuals of one configuration, jittered, so that files differ in their noise,
and `competitive`: the same from configurations within 2 % of the best.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from arl_core.config import ConfirmSettings, load_config, parse_overrides
from arl_core.confirm import (
    Arm,
    Decision,
    Noise,
    PairedTest,
    next_level,
    next_runs,
    paired_gains,
    pooled,
    worth_a_second_look,
)
from arl_core.second_look import paired_test

RULES = ("any", "mean4", "fixed", "e-value", "pooled", "own", "ours")
LEVEL_SHARE, WORSE_MEAN, BEST_GAIN = 0.3, 3.0, (1.0, 3.0)
JITTER = 0.5  # of a file's sd: resampling six values as they are would repeat them exactly
MIN_REPEATS = 5  # trials of one configuration, to call their spread its noise
BINS = ((1.0, 1.5), (1.5, 2.0), (2.0, 2.5), (2.5, 3.0))

Draw = Callable[[np.random.Generator], float]
MakeFile = Callable[[np.random.Generator], Draw]
Judge = Callable[[list[float], Noise | None, float], Decision]


def normal_noise(rng: np.random.Generator) -> Draw:
    return lambda rng: float(rng.normal())


def resampled(groups: Sequence[np.ndarray], by_file: bool) -> MakeFile:
    """Return noise from residuals: of one group per file, jittered, or of all groups for every file."""
    everything = np.concatenate(groups)

    def make(rng: np.random.Generator) -> Draw:
        if not by_file:
            return lambda rng: float(everything[rng.integers(len(everything))])
        mine = groups[int(rng.integers(len(groups)))]
        jitter, shrink = JITTER * mine.std(), math.sqrt(1 + JITTER**2)
        return lambda rng: float((mine[rng.integers(len(mine))] + jitter * rng.normal()) / shrink)

    return make


def read_residuals(path: Path) -> dict[str, list[np.ndarray]]:
    """Return residuals of repeated trials, scaled so that the median configuration has sd 1: all, and the competitive ones."""
    import duckdb

    source = f"read_parquet('{str(path).replace(chr(39), chr(39) * 2)}')"
    names = [name for (name, *_) in duckdb.sql(f"describe from {source}").fetchall() if name.isupper()]
    keys = ", ".join(f'"{name}"' for name in names)
    query = f"""select list(val_bpb) from {source} where val_bpb is not null
                group by {keys} having count(*) >= {MIN_REPEATS} order by min(val_bpb), count(*)"""
    found = [np.array(values) for (values,) in duckdb.sql(query).fetchall()]
    if len(found) < 2:
        raise ValueError(f"{path} has {len(found)} configurations tried {MIN_REPEATS} times or more, two are needed")
    scale = float(np.median([values.std(ddof=1) for values in found]))
    best = min(float(values.mean()) for values in found)
    near = [values for values in found if values.mean() <= 1.02 * best]

    def residuals(values: np.ndarray) -> np.ndarray:
        return np.asarray((values - values.mean()) * math.sqrt(len(values) / (len(values) - 1)) / scale)

    return {"all": [residuals(v) for v in found], "competitive": [residuals(v) for v in near]}


# --- tests ------------------------------------------------------------------------------------------------------------


class Pooled(PairedTest):
    """Believes the pooled variance whatever a candidate's own pairs say."""

    def borrowed(self, squares: float, pairs: int, noise: Noise | None) -> float:
        return self.borrowed_df if noise is not None else 0.0


def make_judge(rule: str, settings: ConfirmSettings, fixed: int) -> tuple[Judge, int]:
    """Return a rule's test and the most pairs that it may take."""
    ours, last = paired_test(settings), settings.max_reruns
    variants = {
        "pooled": Pooled(last, settings.first_look, borrowed_df=1e6),
        "own": PairedTest(last, settings.first_look, borrowed_df=0.0),
        "fixed": PairedTest(fixed, fixed, settings.borrowed_df),
    }
    if rule == "mean4":
        return lambda gains, _noise, _level: _after(3, gains), 3
    if rule == "e-value":
        return lambda gains, noise, level: safe_t(gains, noise, level, last, settings.borrowed_df), last
    test = variants.get(rule, ours)
    return lambda gains, noise, level: test.judge(gains, noise, level).decision, test.max_pairs


def _after(pairs: int, gains: list[float]) -> Decision:
    if len(gains) < pairs:
        return Decision.CONTINUE
    return Decision.PROMOTE if float(np.mean(gains)) > 0 else Decision.DROP


def safe_t(gains: list[float], noise: Noise | None, level: float, last: int, borrowed_df: float) -> Decision:
    """The likelihood ratio of t under an improvement of 1.5 σ against none is an e-value at every look: promote above 1/level.

    (Grünwald, de Heide and Koolen 2024, Safe testing.) Dropped when the ratio falls below 1/5, or the first gain below 0.
    """
    n, gain = len(gains), float(np.mean(gains))
    borrowed = borrowed_df if noise is not None else 0.0
    df = borrowed + n - 1
    if n < 2 or df == 0:
        return Decision.CONTINUE if gain > 0 else Decision.DROP
    squares = borrowed * (noise.variance if noise else 0.0) + float(((np.array(gains) - gain) ** 2).sum()) / 2
    t = gain * math.sqrt(n / 2) / math.sqrt(squares / df)
    ratio = float(stats.nct.pdf(t, df, 1.5 * math.sqrt(n / 2)) / stats.t.pdf(t, df))
    if ratio > 1 / level:
        return Decision.PROMOTE
    return Decision.DROP if n == last or ratio < 0.2 else Decision.CONTINUE


# --- one campaign -----------------------------------------------------------------------------------------------------


@dataclass
class File:
    """A train.py: its true value (lower is better) and its runs."""

    value: float
    draw: Draw
    runs: dict[int, float | None] = field(default_factory=dict)  # on fresh seeds
    single: float = 0.0  # on the campaign's seed


Run = Callable[[File, int], float]  # of a file on a seed


@dataclass
class Campaign:
    """What a simulated campaign did. gains: true gains of what was promoted; sizes: those of the truly better candidates."""

    experiments: int = 0
    reruns: int = 0
    tests: int = 0
    gains: list[float] = field(default_factory=list)
    sizes: list[tuple[float, bool]] = field(default_factory=list)
    nights: list[int] = field(default_factory=list)  # in which start of the campaign each of `sizes` was tried
    pairs: list[int] = field(default_factory=list)  # that each promotion took


@dataclass(frozen=True)
class World:
    """Nature: noise, seed effects, and how good candidates are."""

    noise: MakeFile
    seed_effect: float
    better: float  # probability; 0 is pure noise

    def gain(self, rng: np.random.Generator) -> float:
        """The true gain of a candidate over the incumbent."""
        if not self.better:
            return 0.0
        u = rng.random()
        if u < self.better:
            return float(rng.uniform(*BEST_GAIN))
        return 0.0 if u < self.better + LEVEL_SHARE else -float(rng.exponential(WORSE_MEAN))


def look_again(
    candidate: File, incumbent: File, seeds: Sequence[int], run: Run, judge: Judge, noise: Noise | None, level: float
) -> tuple[Decision, list[float], int]:
    """Run both on fresh seeds until the test decides or `seeds` are used up; the runs are added to the files.

    Return the decision, the paired gains (in σ) and the number of runs that they took.
    """
    decision, gains, reruns = Decision.CONTINUE, list[float](), 0
    while decision is Decision.CONTINUE and (lacking := next_runs(seeds, candidate.runs, incumbent.runs, len(seeds))):
        step = lacking[0]
        file = candidate if step.arm is Arm.CANDIDATE else incumbent
        file.runs[step.seed] = run(file, step.seed)
        reruns += 1
        pairs = paired_gains(seeds, candidate.runs, incumbent.runs, "lower")
        if len(pairs) > len(gains):
            gains = pairs
            decision = judge(gains, noise, level)
    return decision, gains, reruns


def play(
    world: World,
    rule: str,
    settings: ConfirmSettings,
    experiments: int,
    runs: int,
    fixed: int,
    seed: Any,
    nights: int = 1,
) -> Campaign:
    """Play a campaign of so many experiments in each of its nights, or, if `runs` is given, until that many runs of any kind
    are spent."""
    rng = np.random.default_rng(seed)
    offsets: dict[int, float] = {}

    def run(file: File, on_seed: int) -> float:
        if on_seed not in offsets:
            offsets[on_seed] = float(rng.normal() * world.seed_effect)
        return file.value + offsets[on_seed] + file.draw(rng)

    done, spent = Campaign(), list[float]()
    judge, last = make_judge(rule, settings, fixed)
    seeds = list(range(1, last + 1))
    incumbent = File(0.0, world.noise(rng))
    incumbent.single = run(incumbent, 0)
    repeats: list[list[float]] = [[incumbent.single]]
    differences: list[list[float]] = []
    if rule != "any":
        for on_seed in range(1, settings.baseline_repeats + 1):
            incumbent.runs[on_seed] = run(incumbent, on_seed)
            repeats[0].append(float(incumbent.runs[on_seed] or 0.0))
            done.reruns += 1
    noise = pooled(repeats)

    def used() -> int:
        return 1 + done.experiments + done.reruns

    while (used() < runs) if runs else (done.experiments < nights * experiments):
        done.experiments += 1
        gain = world.gain(rng)
        candidate = File(incumbent.value - gain, world.noise(rng))
        candidate.single = run(candidate, 0)
        fresh = [value for value in incumbent.runs.values() if value is not None]
        bar = float(np.mean(fresh)) if fresh else incumbent.single
        kept = False
        if rule == "any" or rule == "mean4":
            kept = candidate.single < bar
        else:
            kept = worth_a_second_look(bar - candidate.single, noise, settings.second_look)
        if kept and rule != "any":
            level = next_level(settings.confidence, spent, runs or experiments)
            spent.append(level)
            done.tests += 1
            decision, gains, reruns = look_again(candidate, incumbent, seeds, run, judge, noise, level)
            done.reruns += reruns
            differences.append(gains)
            noise = pooled(repeats, differences)
            kept = decision is Decision.PROMOTE
            if kept:
                done.pairs.append(len(gains))
        if gain > 0:
            done.sizes.append((gain, kept))
            done.nights.append((done.experiments - 1) // max(1, experiments))
        if kept:
            done.gains.append(gain)
            incumbent = candidate
    return done


# --- figures ----------------------------------------------------------------------------------------------------------


def share(hits: int, of: int) -> dict[str, Any]:
    """A share with its exact (Clopper-Pearson) 95 % interval."""
    low, high = stats.binomtest(hits, of).proportion_ci(method="exact")
    return {"share": round(hits / of, 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def noise_figures(played: Sequence[Campaign]) -> dict[str, Any]:
    """Pure noise: any promotion is a false best."""
    reruns = np.array([one.reruns for one in played])
    return {
        "false_best": share(sum(bool(one.gains) for one in played), len(played)),
        "reruns": {"mean": round(float(reruns.mean()), 2), "p95": float(np.quantile(reruns, 0.95))},
        "second_looks": round(float(np.mean([one.tests for one in played])), 2),
    }


def realistic_figures(played: Sequence[Campaign]) -> dict[str, Any]:
    """power: share of the truly better candidates that were promoted; delay: paired re-runs that a promotion took."""
    sizes = [size for one in played for size in one.sizes]
    pairs = [n for one in played for n in one.pairs]
    promotions = [gain for one in played for gain in one.gains]
    power = {
        f"{low:g}-{high:g}": round(float(np.mean([kept for size, kept in sizes if low <= size < high])), 3)
        for low, high in BINS
        if any(low <= size < high for size, _ in sizes)
    }
    nights = np.array([night for one in played for night in one.nights])
    found_N = np.array([kept for _, kept in sizes])
    return {
        "power": round(float(found_N.mean()), 3),
        "power_by_night": [round(float(found_N[nights == night].mean()), 3) for night in sorted(set(nights.tolist()))],
        "power_by_sigma": power,
        "false_best": share(sum(any(gain <= 0 for gain in one.gains) for one in played), len(played)),
        "false_share_of_promotions": round(float(np.mean([gain <= 0 for gain in promotions])), 4)
        if promotions
        else 0.0,
        "promotions": round(len(promotions) / len(played), 2),
        "true_gain": round(float(np.mean([sum(one.gains) for one in played])), 3),
        "reruns": round(float(np.mean([one.reruns for one in played])), 2),
        "experiments": round(float(np.mean([one.experiments for one in played])), 2),
        "delay_pairs": {"median": float(np.median(pairs)), "p90": float(np.quantile(pairs, 0.9))} if pairs else None,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench.confirmation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--experiments", type=int, default=100, help="of a campaign")
    parser.add_argument(
        "--nights", type=int, default=1, help="starts of a campaign that goes on; each of --experiments"
    )
    parser.add_argument(
        "--runs", type=int, default=150, help="all runs of a campaign, for the comparison at equal cost"
    )
    parser.add_argument("--better", type=float, default=0.08, help="share of candidates that are truly better")
    parser.add_argument("--seed-effect", type=float, default=0.5, help="what a seed does to every file, in σ")
    parser.add_argument("--fixed", type=int, default=8, help="pairs of the rule `fixed`")
    parser.add_argument("--noise", type=Path, help="parquet of repeated trials")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--preset", default="overnight", help="whose settings of confirmation are played")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, confirm.…")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args(arguments)
    if args.campaigns < 1:
        parser.error(f"--campaigns must be at least 1, got {args.campaigns}")
    settings = load_config(args.preset, parse_overrides(args.set)).confirm
    noises: dict[str, MakeFile] = {"normal": normal_noise}
    if args.noise:
        groups = read_residuals(args.noise)
        noises = {
            "pooled": resampled(groups["competitive"], by_file=False),
            "competitive": resampled(groups["competitive"], by_file=True),
            "file": resampled(groups["all"], by_file=True),
        }
    result: dict[str, Any] = {
        "settings": settings.model_dump(mode="json"),
        "experiments": args.experiments,
        "nights": args.nights,
        "noise": {},
    }
    for name, noise in noises.items():
        rules = result["noise"][name] = {}
        for rule in args.rules.split(","):

            def campaigns(better: float, runs: int, rule: str = rule, noise: MakeFile = noise) -> list[Campaign]:
                world = World(noise, args.seed_effect, better)
                seeds = ([args.seed, number] for number in range(args.campaigns))
                return [
                    play(world, rule, settings, args.experiments, runs, args.fixed, seed, args.nights) for seed in seeds
                ]

            rules[rule] = {
                "pure_noise": noise_figures(campaigns(0.0, 0)),
                "realistic": realistic_figures(campaigns(args.better, 0)),
                "equal_cost": realistic_figures(campaigns(args.better, args.runs)),
            }
            print(line(name, rule, rules[rule]), flush=True)
    if args.json:
        print(json.dumps(result))
    return result


def line(noise: str, rule: str, found: dict[str, Any]) -> str:
    quiet, real, equal = found["pure_noise"], found["realistic"], found["equal_cost"]
    low, high = quiet["false_best"]["ci95"]
    return (
        f"{noise:12s}{rule:8s} false best {quiet['false_best']['share']:.1%} [{low:.1%}, {high:.1%}], "
        f"{quiet['reruns']['mean']:.0f} re-runs; realistic: power {real['power']:.0%}, {real['reruns']:.0f} re-runs, "
        f"{real['promotions']:.1f} promotions, {real['false_share_of_promotions']:.1%} of them false; "
        f"true gain at equal cost {equal['true_gain']:.2f} σ"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
