"""Live comparison: the same seeds with and without early stopping, at equal training seconds.

    python -m bench.live_stopping --seeds 3 --training-s 240 --json

Real candidates of a preset run under the frozen environment (host, sandbox, scorer). The proposer is not the language
model but the warm start's seeded drawer of edits (arl_core.policy.synthesis), applied to the arm's incumbent: it costs
nothing and gives both arms the same edit as long as they stand at the same incumbent. An arm ends when it has no time
left for another whole run. The arms take turns, whichever has trained less, so that the machine's load hits both alike.
At the end each arm's best is trained again, whole, with fresh seeds: `best_val_bpb` was chosen under noise,
`confirmed_val_bpb` was not. The arm without stopping is judged too, without consequence: `improving_runs_it_would_stop`.

Every experiment is appended to --out; the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arl_core.config import CampaignConfig, load_config, parse_overrides
from arl_core.edit import write_constants
from arl_core.outcome import settle
from arl_core.policy.synthesis import apply, draw_edit
from arl_core.records import source_hash
from arl_core.selfeval import Curve, PastRun, Snapshot, is_judged, make_judge, stands_for
from arl_core.selfeval.judge import broken_run
from frozen_env.contract import Judge, Progress, ResearchError, RunResult, Status, Verdict
from frozen_env.fetch import data_dir
from frozen_env.problem.data import prepare
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec

ARMS = ("with", "without")
WHOLE = (Status.KEPT, Status.DISCARDED)
_DRAWS = 400  # attempts at an edit that applies and is new
_WOULD_STOP = "would stop"


@dataclass
class Arm:
    """One campaign: what it has spent and found. `source` is its incumbent's."""

    stops: bool
    seed: int
    source: str
    alpha: float
    audit_share: float
    spent_s: float = 0.0
    best: float | None = None
    statuses: list[str] = field(default_factory=list)
    completed: list[PastRun] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    confirmed: list[float] = field(default_factory=list)
    would_stop: int = 0  # improving runs that the verdict would have stopped

    def propose(self) -> str:
        """Draw the next candidate from (seed, index, incumbent) alone; experiment 0 is the untouched target."""
        index = len(self.statuses)
        if index == 0:
            return self.source
        rng = random.Random(f"{self.seed}/{index}")
        for _ in range(_DRAWS):
            blocks = draw_edit(self.source, rng)
            edited = apply(self.source, blocks) if blocks else None
            if edited and source_hash(edited) not in self.seen:
                return edited
        raise ValueError(f"no new edit in {_DRAWS} draws for seed {self.seed}, experiment {index}")

    def judge(self, spec: EnvironmentSpec) -> Judge:
        """Judge as a campaign does; without stopping, the verdict is recorded and the run goes on."""
        share = spec.check_every_s / spec.budget_s
        checks = [k * share for k in range(1, int(1 / share) + 1) if k * share < 1]
        snapshot = Snapshot.build(self.completed, alpha=self.alpha, checks=checks)
        if self.stops:
            return make_judge(dataclasses.replace(snapshot, audited=self.audits()))
        judge = make_judge(snapshot)

        def watch(progress: Progress) -> Verdict:
            seen = judge(progress)
            if not seen.stop or broken_run(progress.reports):
                return seen
            return dataclasses.replace(seen, stop=False, rule=_WOULD_STOP)

        return watch

    def audits(self) -> bool:
        """Is the next experiment drawn for the audit?"""
        return random.Random(f"audit/{self.seed}/{len(self.statuses)}").random() < self.audit_share

    def take(self, row: dict[str, Any]) -> None:
        """Add one line of the file, fresh or read again."""
        if row["confirms"]:
            if row["value"] is not None:
                self.confirmed.append(row["value"])
            return
        self.spent_s += row["training_s"]
        self.statuses.append(row["status"])
        self.seen.add(row["source_hash"])
        if row["past"] is not None:
            told = {name: value for name, value in row["past"].items() if name != "levels"}
            self.completed.append(PastRun(row["value"], tuple(row["past"]["levels"]), **told))
        if row["status"] == Status.KEPT:
            self.would_stop += bool(row["would_stop_at"]) and len(self.completed) > 1
            self.best, self.source = row["value"], row["source"]


def run_next(arm: Arm, host: Host, spec: EnvironmentSpec, confirms: bool) -> dict[str, Any]:
    """Run the arm's next experiment, or its best again when that is to be confirmed. Returns its line."""
    source = arm.source if confirms else arm.propose()
    index = len(arm.confirmed) if confirms else len(arm.statuses)
    seed = 1000 * (arm.seed + 1) + index + (500 if confirms else 0)
    with tempfile.TemporaryDirectory(prefix="live-") as place:
        result = host.run(source, seed=seed, place=Path(place), judge=None if confirms else arm.judge(spec))
    return {"seed": arm.seed, "arm": ARMS[not arm.stops], "index": index, "confirms": confirms} | _line(
        arm, source, result
    )


def _line(arm: Arm, source: str, result: RunResult) -> dict[str, Any]:
    outcome = settle(result, arm.best, "lower")
    past = None if outcome.value is None else PastRun.from_curve(Curve.from_reports(result.reports), outcome.value)
    kept = outcome.status is Status.KEPT
    known = stands_for(result.verdicts, arm.audit_share)
    sampled = not arm.stops or arm.audits() or not is_judged(result.verdicts)  # without stopping nothing selects
    return {
        "status": str(outcome.status),
        "reason": outcome.reason[:200],
        "value": outcome.value,
        "estimate": outcome.estimate,
        "training_s": round(result.training_s, 3),
        "would_stop_at": next((v.fraction for v in result.verdicts if v.rule == _WOULD_STOP), None),
        "source_hash": source_hash(source),
        "source": source if kept else None,
        "past": past and {"levels": past.levels, "blur": past.blur, "stands_for": known, "sampled": sampled},
    }


def summarise(arms: Sequence[Arm]) -> dict[str, Any]:
    """Return lists over seeds: experiments, whole and stopped ones, training seconds, best and confirmed val_bpb."""
    told: dict[str, Any] = {}
    for name in ARMS:
        mine = [arm for arm in arms if arm.stops is (name == "with")]
        told[name] = {
            "experiments": [len(arm.statuses) for arm in mine],
            "whole": [sum(s in WHOLE for s in arm.statuses) for arm in mine],
            "stopped_early": [arm.statuses.count(Status.STOPPED_EARLY) for arm in mine],
            "failed": [sum(s not in (*WHOLE, Status.STOPPED_EARLY) for s in arm.statuses) for arm in mine],
            "training_s": [round(arm.spent_s, 1) for arm in mine],
            "best_val_bpb": [arm.best for arm in mine],
            "confirmed_val_bpb": [round(statistics.mean(a.confirmed), 5) if a.confirmed else None for a in mine],
        }
    told["without"]["improving_runs_it_would_stop"] = [arm.would_stop for arm in arms if not arm.stops]
    return told


def compare(options: argparse.Namespace, config: CampaignConfig, host: Host) -> dict[str, Any]:
    """Run whatever the file lacks, arms in turn, and return the summary."""
    spec = config.environment
    text = (Path(__file__).resolve().parents[1] / config.source).read_text(encoding="utf-8")
    source = write_constants(text, config.target)
    arms = [
        Arm(name == "with", seed, source, config.stopping.alpha, config.stopping.audit_share)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for name in ARMS
    ]
    known = {(arm.seed, ARMS[not arm.stops]): arm for arm in arms}
    for row in _read(options.out, _settings(config, options)):
        if (row["seed"], row["arm"]) in known:
            known[row["seed"], row["arm"]].take(row)
    while todo := [a for a in arms if a.spent_s + spec.budget_s <= options.training_s]:
        seed = todo[0].seed  # one seed at a time, its two arms in turn
        arm = min((a for a in todo if a.seed == seed), key=lambda a: a.spent_s)
        _step(arm, host, spec, options.out, confirms=False)
    while todo := [a for a in arms if len(a.confirmed) < options.confirm]:
        _step(min(todo, key=lambda a: len(a.confirmed)), host, spec, options.out, confirms=True)
    return summarise(arms)


def _step(arm: Arm, host: Host, spec: EnvironmentSpec, out: Path, *, confirms: bool) -> None:
    row = run_next(arm, host, spec, confirms)
    if confirms and row["value"] is None:
        raise ValueError(f"the best of seed {arm.seed} failed when trained again: {row['reason']}")
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    arm.take(row)
    value = "" if row["value"] is None else f" {row['value']:.4f}"
    word = "confirmation" if confirms else row["status"]
    print(f"seed {row['seed']} {row['arm']:7} #{row['index']:<3} {word}{value}, {arm.spent_s:.0f} s", flush=True)


def _settings(config: CampaignConfig, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "environment": config.environment.to_json(),
        "alpha": config.stopping.alpha,
        "audit_share": config.stopping.audit_share,
        "training_s": options.training_s,
    }


def _read(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of an earlier call; a line that was cut by an interruption is dropped from the file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.is_file() else []
    rows = [json.loads(text) for text in whole if text.endswith("\n")]
    if rows and rows[0] != settings:
        raise ValueError(f"{out} was begun with other settings, {rows[0]}; name another file with --out")
    lines = [json.dumps(row) + "\n" for row in (rows or [settings])]
    out.write_text("".join(lines), encoding="utf-8")
    return rows[1:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.live_stopping", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--training-s", type=float, default=240.0, help="training seconds of each arm")
    parser.add_argument("--confirm", type=int, default=2, help="fresh whole runs of each arm's best")
    parser.add_argument("--out", type=Path, default=Path("mlruns/live_stopping.jsonl"), help="kept to go on from")
    parser.add_argument("--json", action="store_true", help="print the summary as the last line")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.preset, parse_overrides(options.set))
        prepare(config.environment, data_dir(), print)
        with held_for(config.environment.device) as gpu, Host(config.environment, data_dir(), gpu=gpu) as host:
            host.wait_ready()
            found = compare(options, config, host)
    except (ResearchError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, figures in found.items():
        print(f"{name} stopping: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
