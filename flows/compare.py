"""Compare arms at equal budget on the real environment: the same loop, another proposer.

python -m flows.compare --arms seed,random,greedy,rl --seeds 2 --hours 0.1 --out mlruns/compare
python -m flows.compare --out mlruns/compare ...      # the same again goes on where it was interrupted

Each arm and seed is a campaign of its own with a memory of its own, run for the same hours of wall clock, policy time
included. Arms take turns seed by seed, so that a machine that changes its pace treats all alike. In the end each campaign's
best program runs on fresh seeds, because the best of many runs is partly the luckiest; that mean is the figure to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from arl_core.arms import ARMS, WORDS, ArmRun, gain_against, interval
from arl_core.config import CampaignConfig, load_config, parse_overrides, preset_names
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment
from arl_core.report.findings import best_of, wall_clock_s
from flows.mortal import make_servers_mortal
from flows.research import research
from flows.slots import LocalSlots, Order
from flows.surroundings import ROOT
from frozen_env.contract import ResearchError

EXPERIMENTS_PER_BUDGET = 4  # most that a slot fits into one, when all but a few crash or are stopped early
FRESH_SEEDS_FROM = 900_001  # campaigns use small seeds
ENOUGH = 0.98  # of the hours: what is left would not hold one more experiment


@dataclass(frozen=True)
class Plan:
    """What is compared. `settings` are the user's overrides, for all arms alike."""

    preset: str
    arms: tuple[str, ...]
    seeds: int
    hours: float
    reruns: int
    out: Path
    settings: dict[str, Any]

    @property
    def most_experiments(self) -> int:
        """A count that the hours do not reach. Not larger: confirmation shares its error out over what is still to come."""
        config = load_config(self.preset, self.settings)
        budgets = config.parallel * 3600 * self.hours / config.environment.budget_s
        return max(8, math.ceil(EXPERIMENTS_PER_BUDGET * budgets))

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / f"{arm}-{seed}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arms", default="seed,random,greedy,rl", help=f"some of {','.join(ARMS)} (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="campaigns per arm (default: 3)")
    parser.add_argument("--hours", type=float, default=1.0, help="wall clock of each campaign (default: 1)")
    parser.add_argument("--reruns", type=int, default=3, help="fresh seeds for each best program (default: 3; 0: none)")
    parser.add_argument("--preset", default="embedded", help=f"one of: {', '.join(preset_names())} (default: embedded)")
    parser.add_argument("--out", type=Path, default=ROOT / "mlruns" / "compare", help="default: mlruns/compare")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, all arms")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    try:
        chosen = plan(options)
        make_servers_mortal()
        result = compare(chosen)
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result))
    return 0


def plan(options: argparse.Namespace) -> Plan:
    """Raises ConfigError for an unknown arm or setting, or a count that makes no comparison."""
    arms = tuple(dict.fromkeys(name.strip() for name in options.arms.split(",") if name.strip()))
    unknown = [name for name in arms if name not in ARMS]
    if unknown or not arms:
        raise ConfigError(f"unknown arm {', '.join(unknown) or options.arms!r}; there are: {', '.join(ARMS)}")
    if options.seeds < 1 or options.hours <= 0 or options.reruns < 0:
        raise ConfigError("--seeds must be 1 or more, --hours more than 0, --reruns 0 or more")
    settings = parse_overrides(options.set)
    reserved = [
        key
        for key in settings
        if key in ("memory", "seed", "iterations", "stop.hours", "policy.proposer", "policy.learn")
    ]
    if reserved:
        raise ConfigError(f"{reserved[0]} is what the comparison sets itself; leave it out of --set")
    for arm in arms:  # what does not fit an arm must not show after the others' hours
        load_config(options.preset, {**ARMS[arm], **settings})
    return Plan(options.preset, arms, options.seeds, options.hours, options.reruns, options.out.resolve(), settings)


def compare(plan: Plan) -> dict[str, Any]:
    """Run what is missing, print the table, and return the figures as plain data."""
    _same_plan(plan)
    for seed in range(plan.seeds):
        shift = seed % len(plan.arms)  # no arm always comes first
        for arm in (*plan.arms[shift:], *plan.arms[:shift]):
            run_arm(plan, arm, seed)
    if plan.reruns:
        with _slot(plan) as slot:
            for seed in range(plan.seeds):
                for arm in plan.arms:
                    rerun_best(plan, arm, seed, slot)
    runs = [result(plan, arm, seed) for arm in plan.arms for seed in range(plan.seeds)]
    Console(width=None if Console().is_terminal else 140).print(table(plan, runs))
    return figures(plan, runs)


def run_arm(plan: Plan, arm: str, seed: int) -> None:
    """Run one campaign until its hours are spent; a campaign that was interrupted goes on."""
    memory_path = plan.folder(arm, seed) / "memory.duckdb"
    left = plan.hours - spent_hours(memory_path)
    if left < (1 - ENOUGH) * plan.hours:
        return
    settings: dict[str, Any] = {"memory": str(memory_path), "stop.hours": left}
    campaign = _campaign(memory_path)
    print(f"{arm}, seed {seed}: {60 * left:.1f} minutes left", flush=True)
    if campaign is not None:
        research(plan.preset, plan.most_experiments, campaign.id, settings)
        return
    fresh = {"tracking": False, **ARMS[arm], **plan.settings, "seed": seed, **settings}
    research(plan.preset, plan.most_experiments, None, fresh)


def spent_hours(memory_path: Path) -> float:
    """Hours of wall clock that a campaign's starts took; 0 before the first experiment.

    Left out: what an interruption cut off.
    """
    return wall_clock_s(_experiments(memory_path)) / 3600


def rerun_best(plan: Plan, arm: str, seed: int, slot: LocalSlots) -> None:
    """Run a campaign's best program on fresh seeds, the same for every arm; what is on disk is not run again.

    Raises ConfigError when the campaign ran in another frozen environment than the slot's.
    """
    best = best_of(_experiments(plan.folder(arm, seed) / "memory.duckdb"))
    path = plan.folder(arm, seed) / "reruns.json"
    done = _reruns(path)
    if best is None:
        return
    if best.environment_digest != slot.environment_digest:
        raise ConfigError(
            f"{arm}, seed {seed} ran on frozen environment {best.environment_digest}, this is {slot.environment_digest}: "
            "re-runs would not compare. Restore that version and its settings, or give --reruns 0"
        )
    if done.get("source_hash") != best.source_hash:
        done = {"source_hash": best.source_hash, "values": {}}
    for fresh in range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + plan.reruns):
        if str(fresh) in done["values"]:
            continue
        print(f"{arm}, seed {seed}: experiment {best.index} again, on seed {fresh}", flush=True)
        with tempfile.TemporaryDirectory(prefix="rerun-") as place:
            outcome = slot.run(Order(best.index, best.source, fresh, Path(place), "none", {}), lambda _event: None)
        done["values"][str(fresh)] = outcome.score.value if outcome.score else None
        path.write_text(json.dumps(done), encoding="utf-8")


def result(plan: Plan, arm: str, seed: int) -> ArmRun:
    memory_path = plan.folder(arm, seed) / "memory.duckdb"
    known = _reruns(plan.folder(arm, seed) / "reruns.json")["values"]
    seeds = [str(fresh) for fresh in range(FRESH_SEEDS_FROM, FRESH_SEEDS_FROM + plan.reruns)]
    # Exactly these: another call may have asked for more, and programs would be compared on different seeds.
    values = [known[fresh] for fresh in seeds] if all(fresh in known for fresh in seeds) else []
    return ArmRun.of(arm, seed, _experiments(memory_path), values, spent_hours(memory_path))


def table(plan: Plan, runs: Sequence[ArmRun]) -> Table:
    """The paper's table: one row per arm, means over campaign seeds with 95 % intervals."""
    direction = load_direction(plan)
    shown = Table(title=f"{plan.preset}: {plan.seeds} seeds, {60 * plan.hours:.3g} minutes each, policy time included")
    for name in (
        "arm",
        "experiments",
        "trained",
        "improvements",
        "best run",
        f"best on {plan.reruns} fresh seeds",
        "gain on seed arm",
    ):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    base = [run for run in runs if run.arm == "seed"]
    for arm in plan.arms:
        some = [run for run in runs if run.arm == arm]
        beyond = gain_against(some, base, direction) if arm != "seed" else None
        shown.add_row(
            arm,
            *(str(sum(getattr(run, name) for run in some)) for name in ("experiments", "trained", "improvements")),
            str(interval([run.best for run in some]) or "-"),
            _rerun_words(some),
            str(beyond or "-"),
        )
    return shown


def _rerun_words(some: Sequence[ArmRun]) -> str:
    failed = sum(run.failed_reruns for run in some)
    mean = str(interval([run.rerun for run in some]) or "-")
    return f"{mean}, {failed} failed" if failed else mean


def figures(plan: Plan, runs: Sequence[ArmRun]) -> dict[str, Any]:
    arms = {arm: [asdict(run) for run in runs if run.arm == arm] for arm in plan.arms}
    summary = {}
    for arm, some in arms.items():
        told = {name: interval([run[name] for run in some]) for name in ("best", "rerun")}
        summary[arm] = {name: asdict(each) if each else None for name, each in told.items()} | {"words": WORDS[arm]}
    conditions = {key: value for key, value in asdict(plan).items() if key != "out"}
    return {"conditions": conditions, "arms": arms, "summary": summary}


def load_direction(plan: Plan) -> Any:
    """The metric's direction, from whichever campaign ran first."""
    found = _experiments(plan.folder(plan.arms[0], 0) / "memory.duckdb")
    return found[0].direction if found else "lower"


@contextlib.contextmanager
def _slot(plan: Plan) -> Iterator[LocalSlots]:
    """One slot of this machine in the environment that the campaigns wrote down: `parallel` may have changed its threads."""
    campaign = _campaign(plan.folder(plan.arms[0], 0) / "memory.duckdb")
    assert campaign is not None, "the arms run first"
    slots = LocalSlots(CampaignConfig.from_json(campaign.config), 1, plan.out / "host.log")
    with contextlib.closing(slots):
        slots.wait_ready()
        yield slots


def _same_plan(plan: Plan) -> None:
    """Refuse to mix campaigns of other settings into one comparison."""
    path = plan.out / "plan.json"
    mine = {"preset": plan.preset, "hours": plan.hours, "settings": plan.settings}
    if path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        if told != mine:
            raise ConfigError(
                f"{plan.out} holds a comparison of other settings ({told}); give another --out, or remove it"
            )
        return
    plan.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine), encoding="utf-8")


def _campaign(memory_path: Path) -> Campaign | None:
    """The latest campaign of a memory; None when there is no memory, or an empty one."""
    if not memory_path.exists():
        return None
    with contextlib.closing(Memory(memory_path, read_only=True)) as memory:
        return next(reversed(memory.campaigns()), None)


def _experiments(memory_path: Path) -> list[Experiment]:
    campaign = _campaign(memory_path)
    if campaign is None:
        return []
    with contextlib.closing(Memory(memory_path, read_only=True)) as memory:
        return memory.experiments(campaign.id)


def _reruns(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"source_hash": "", "values": {}}
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
