"""What scoring costs, and whether it agrees with a plain evaluation in one process.

python -m bench.scoring --json [--preset embedded] [--repeats 3]

Trains the preset's own target for a second under the host, has it scored there, and scores the same weights again here
with torch's cross-entropy over the whole held-out text. `seconds` runs from the workers being ready to the value;
`startup_s` (fork, build_model, weights) is apart; `share_of_budget` is `seconds` over the preset's budget.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model

from arl_core.edit import write_constants
from frozen_env.contract import ResearchError, RunResult
from frozen_env.fetch import data_dir
from frozen_env.problem.data import load
from frozen_env.runtime import client
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, read_preset

ROOT = Path(__file__).resolve().parents[1]
TRAINING_S = 1.0
ROWS_AT_ONCE = 16


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scoring", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    preset = read_preset(options.preset)
    spec = EnvironmentSpec.from_json(preset["environment"])
    source = write_constants((ROOT / "target" / "train.py").read_text(encoding="utf-8"), preset["target"])
    figures = measure(spec, source, options.repeats)
    for key, value in figures.items():
        print(f"{key:24} {value:.6g}")
    if options.json:
        print(json.dumps(figures))
    return 0


def measure(spec: EnvironmentSpec, source: str, repeats: int) -> dict[str, float]:
    """Return median seconds, start-up and share of the budget, and the largest difference from the plain evaluation.

    Raises ResearchError when the target gives no score.
    """
    results: list[RunResult] = []
    short = replace(spec, budget_s=TRAINING_S, grace_s=max(spec.grace_s, 10.0))
    with (
        tempfile.TemporaryDirectory(prefix="scoring-") as folder,
        held_for(short.device) as gpu,
        Host(short, data_dir(), gpu=gpu) as host,
    ):
        for seed in range(repeats):
            place = Path(folder) / str(seed)
            place.mkdir()
            result = host.run(source, seed=seed, place=place)
            if result.score is None:
                raise ResearchError(f"the target gave no score: {result.reason}")
            results.append(result)
        # After all runs: threads of this process must not disturb the host's.
        host.close()
        scores = [result.score for result in results if result.score is not None]
        differences = []
        for seed, score in enumerate(scores):
            place = Path(folder) / str(seed)
            plain = evaluate(short, place / "candidate" / "train.py", place / "submission" / client.SUBMISSION)
            differences.append(abs(plain - score.value))
    seconds = statistics.median(score.seconds for score in scores)
    return {
        "seconds": seconds,
        "startup_s": statistics.median(score.startup_s for score in scores),
        "share_of_budget": seconds / spec.budget_s,
        "abs_diff_vs_in_process": max(differences),
    }


def evaluate(spec: EnvironmentSpec, source: Path, weights: Path) -> float:
    """Bits per byte of submitted weights, in this process, without sandbox, shared memory or probes."""
    torch.set_num_threads(spec.threads)
    client.join(
        client.Run(spec.vocab_size, spec.seq_len, spec.budget_s, seed=0, device=spec.device, scratch=str(source.parent))
    )
    model = runpy.run_path(str(source), run_name="candidate")["build_model"]()
    load_model(model, str(weights))
    model.eval()
    data = load(spec, data_dir())
    rows = torch.from_numpy(data.held_out_BT1.astype("int64")).to(client.device())
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows[start : start + ROWS_AT_ONCE]
            logits_BTV = model(batch[:, :-1])
            loss = F.cross_entropy(logits_BTV.double().flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            nats += float(loss)
    return nats / (math.log(2) * int(data.token_bytes_V[data.held_out_BT1[:, 1:]].sum()))


if __name__ == "__main__":
    sys.exit(main())
