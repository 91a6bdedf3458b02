"""Everything that a GPU is wanted for, measured in one go: speed, memory, scoring, sandbox, and the policy's share.

python -m bench.gpu --json                                       # the overnight preset: nine runs of 300 s
python -m bench.gpu --json --preset embedded --runs 1 --campaign 0        # tries the script itself on a CPU

Runs the preset's untouched target with the sandbox on and off in turn, each seed both ways, then a short campaign. What
cannot be had on this machine is null in the figures and `not measured` in the table; nothing is estimated.

    tokens_per_s, mfu, peak_vram_mb, step_share, wait_share    of runs in the sandbox, medians (docs/metrics.md)
    val_bpb                     of each seed, in the sandbox
    startup_s                   of each run in order: the first compiles, later ones find compiled code
    scoring_share               scoring a submission, workers' start-up included, over the budget
    sandbox_slowdown            1 - tokens per second inside over outside, median over seeds
    policy_share                seconds of proposal, update and checkpoint over those of the experiment
    training_share              seconds in which a candidate trains, over the whole iteration
    parts                       median seconds of every part of an iteration
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from arl_core.config import CampaignConfig, load_config, parse_overrides
from arl_core.edit import write_constants
from arl_core.memory import Memory
from arl_core.records import Experiment
from flows.research import research
from flows.setup import main as set_up
from frozen_env.contract import ResearchError, RunResult
from frozen_env.fetch import data_dir
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "transformers", "peft", "llguidance", "tokenizers", "gigatoken", "sandlock")
POLICY_PARTS = ("propose", "update", "checkpoint")
NOT_MEASURED = "not measured"
SANDBOXES: tuple[Literal["on", "off"], ...] = ("on", "off")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.preset, parse_overrides(options.set))
        require_device(config)
        if set_up(["--preset", options.preset, *(word for item in options.set for word in ("--set", item))]) != 0:
            return 1
        figures = measure(config, options.preset, range(options.runs), options.campaign, parse_overrides(options.set))
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in table(figures):
        print(line)
    if options.json:
        print(json.dumps(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="overnight")
    parser.add_argument(
        "--runs", type=int, default=2, help="seeds, each run inside and outside the sandbox (default: 2)"
    )
    parser.add_argument(
        "--campaign",
        type=int,
        default=4,
        help="experiments of a campaign after its own experiment 0, 0 for none (default: 4)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    return parser


def require_device(config: CampaignConfig) -> None:
    """Raise ResearchError when the preset wants a GPU and torch sees none."""
    import torch

    if config.environment.device == "cuda" and not torch.cuda.is_available():
        raise ResearchError(
            f"preset {config.preset} runs on a GPU and torch {torch.__version__} sees none: install a build of torch for your "
            "driver, or try the script on a CPU with --preset embedded"
        )


def measure(
    config: CampaignConfig, preset: str, seeds: Sequence[int], experiments: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Return every figure. Raises ResearchError when a run of the untouched target gives no score."""
    found = run_target(config, seeds)
    figures: dict[str, Any] = {"preset": preset, "budget_s": config.environment.budget_s, "seeds": list(seeds)}
    figures |= surroundings(found["on"]) | of_runs(found["on"], config.environment.budget_s)
    figures["sandbox"] = found["on"][0].sandbox
    figures["sandbox_slowdown"] = slowdown(found["on"], found["off"])
    return figures | (of_campaign(run_campaign(preset, experiments, overrides)) if experiments else of_campaign([]))


# --- runs of the untouched target -------------------------------------------------------------------------------------


def run_target(config: CampaignConfig, seeds: Sequence[int]) -> dict[str, list[RunResult]]:
    """Run each seed inside and outside the sandbox, which of them first changing from seed to seed."""
    source = write_constants((ROOT / config.source).read_text(encoding="utf-8"), config.target)
    found: dict[str, list[RunResult]] = {name: [] for name in SANDBOXES}
    for seed in seeds:
        for name in SANDBOXES if seed % 2 == 0 else SANDBOXES[::-1]:
            with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
                place = Path(folder)
                spec = replace(config.environment, sandbox=name)
                with held_for(spec.device) as gpu, Host(spec, data_dir(), place / "host.log", gpu) as host:
                    result = host.run(source, seed=seed, place=place)
            if result.score is None:
                raise ResearchError(f"the untouched target gave no score, sandbox {name}: {result.reason}")
            print(f"seed {seed}, sandbox {name}: {result.score.metric} {result.score.value:.4f}", flush=True)
            found[name].append(result)
    return found


def of_runs(results: Sequence[RunResult], budget_s: float) -> dict[str, Any]:
    """Return medians over runs, None where no run knows a figure."""
    known = [result.extra["performance"] for result in results]
    names = (
        "tokens_per_s",
        "step_s",
        "mfu",
        "peak_vram_mb",
        "step_share",
        "wait_share",
        "parameters",
        "flops_per_token",
    )
    figures: dict[str, Any] = {name: median(one[name] for one in known) for name in names}
    figures["val_bpb"] = [result.score.value for result in results if result.score is not None]
    figures["startup_s"] = [round(result.startup_s, 2) for result in results]
    figures["scoring_share"] = median(result.scoring_s / budget_s for result in results)
    figures["scoring_answers_share"] = median(
        result.score.seconds / budget_s for result in results if result.score is not None
    )
    return figures


def slowdown(inside: Sequence[RunResult], outside: Sequence[RunResult]) -> float | None:
    """Return 1 - tokens per second inside the sandbox over outside, the median over seeds; negative: faster inside."""
    pairs = zip(inside, outside, strict=True)
    rates = [(a.extra["performance"]["tokens_per_s"], b.extra["performance"]["tokens_per_s"]) for a, b in pairs]
    return median(1 - a / b for a, b in rates if a is not None and b)


# --- a campaign -------------------------------------------------------------------------------------------------------


def run_campaign(preset: str, experiments: int, overrides: dict[str, Any]) -> list[Experiment]:
    """Run a campaign in a folder of its own, every candidate to its end. Return its experiments without the baseline."""
    with tempfile.TemporaryDirectory(prefix="gpu-campaign-") as folder:
        memory = Path(folder) / "mlruns" / "memory.duckdb"
        settings = {"stopping.rule": "none", "confirm.enabled": False, "policy.batch_edits": min(2, experiments)}
        settings |= overrides | {"memory": str(memory)}
        found = research(preset, iterations=experiments, settings=settings, fresh=True)
        return Memory(memory, read_only=True).experiments(found["campaign"])[1:]


def of_campaign(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Return the policy's share and training's share over the experiments that trained, and every part's median."""
    trained = [one.costs for one in experiments if one.costs.get("training", 0.0) > 0]
    policy_s = sum(sum(one.costs.get(part, 0.0) for part in POLICY_PARTS) for one in experiments)
    run_s = sum(costs["run"] for costs in trained)
    whole_s = sum(costs["iteration"] + costs.get("before/between", 0.0) for costs in trained)
    parts = {name: median(costs.get(name) for costs in trained) for costs in trained for name in costs}
    return {
        "experiments": len(experiments),
        "policy_share": policy_s / run_s if run_s else None,
        "training_share": sum(costs["training"] for costs in trained) / whole_s if whole_s else None,
        "parts": dict(sorted(parts.items())),
    }


# --- telling ----------------------------------------------------------------------------------------------------------


def surroundings(results: Sequence[RunResult]) -> dict[str, Any]:
    """Return the device, as runs told it, and the versions of what matters."""
    import torch

    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"device": results[0].extra["performance"]["device"], "kernel": platform.release(), "versions": versions}


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def table(figures: dict[str, Any]) -> list[str]:
    """Return one line per figure; what is missing says so."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{name}.{key:24} {_shown(one)}" for key, one in value.items()]
        else:
            lines.append(f"{name:28} {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value == []:
        return NOT_MEASURED
    return f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
