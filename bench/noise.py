"""The noise floor of an environment: how far apart are the results of one and the same file?

python -m bench.noise --preset embedded --seeds 6 --repeats 2 --json
python -m bench.noise --preset embedded --seeds 6 --variant DEPTH=1 --variant MUON_STEPS=8 --json

Runs the preset's target, and every variant of its constants, on the same seeds (a seed is a data order). Needs an idle
machine: on a CPU the load decides how many steps fit into the budget. `sd_between` is the standard deviation over seeds,
`sd_within` that of repeats on one seed (with --repeats 2 or more), `sd_paired` that of a variant's differences from the
target on equal seeds. Runs alternate between files, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arl_core.config import parse_overrides
from arl_core.edit import write_constants
from frozen_env.contract import ResearchError
from frozen_env.fetch import data_dir
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, preset_names, read_preset

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.noise", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded", choices=preset_names())
    parser.add_argument("--seeds", type=int, default=6, help="data orders")
    parser.add_argument("--repeats", type=int, default=1, help="runs of the target on every seed")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=VALUE", help="a constant of the target")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    preset = read_preset(options.preset)
    spec = EnvironmentSpec.from_json(preset["environment"])
    target = (ROOT / "target" / "train.py").read_text(encoding="utf-8")
    sources = {"target": write_constants(target, preset["target"])}
    for item in options.variant:
        sources[item] = write_constants(sources["target"], parse_overrides([item]))
    result = figures(measure(spec, sources, options.seeds, options.repeats))
    for name, found in result.items():
        print(name, {key: value for key, value in found.items() if key not in ("values", "tokens")})
    if options.json:
        print(json.dumps(result))
    return 0


def measure(
    spec: EnvironmentSpec, sources: dict[str, str], seeds: int, repeats: int
) -> dict[str, list[list[tuple[float, int]]]]:
    """Return [(value, training tokens)] by file, seed and repeat; the target alone is repeated.

    Raises ResearchError when a file gives no score.
    """
    found: dict[str, list[list[tuple[float, int]]]] = {name: [[] for _ in range(seeds)] for name in sources}
    plan = [(s, r, name) for r in range(repeats) for s in range(seeds) for name in sources if not r or name == "target"]
    with (
        tempfile.TemporaryDirectory(prefix="noise-") as folder,
        held_for(spec.device) as gpu,
        Host(spec, data_dir(), gpu=gpu) as host,
    ):
        host.wait_ready()
        for number, (seed, repeat, name) in enumerate(plan):
            place = Path(folder) / str(number)
            place.mkdir()
            result = host.run(sources[name], seed=seed, place=place)
            if result.score is None:
                raise ResearchError(f"{name} gave no score on seed {seed}: {result.reason}")
            found[name][seed].append((result.score.value, result.tokens_served))
            print(
                f"{name} seed {seed} repeat {repeat}: {result.score.value:.5f}, {result.tokens_served} tokens",
                flush=True,
            )
    return found


def figures(found: dict[str, list[list[tuple[float, int]]]]) -> dict[str, dict[str, Any]]:
    """Return the standard deviations of each file, by the names that the module's text explains; None where undefined."""
    first = {name: np.array([runs[0][0] for runs in by_seed]) for name, by_seed in found.items()}
    result: dict[str, dict[str, Any]] = {}
    for name, by_seed in found.items():
        values = [[value for value, _ in runs] for runs in by_seed]
        sd_within = None
        if all(len(runs) > 1 for runs in values):
            sd_within = float(np.sqrt(np.mean([np.var(runs, ddof=1) for runs in values])))
        gain_S = first["target"] - first[name]
        result[name] = {
            "mean": float(first[name].mean()),
            "sd_between": float(first[name].std(ddof=1)) if len(values) > 1 else None,
            "sd_within": sd_within,
            "mean_gain": None if name == "target" else float(gain_S.mean()),
            "sd_paired": None if name == "target" or len(values) < 2 else float(gain_S.std(ddof=1)),
            "values": values,
            "tokens": [[tokens for _, tokens in runs] for runs in by_seed],
        }
    return result


if __name__ == "__main__":
    sys.exit(main())
