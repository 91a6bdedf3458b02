"""How long a candidate waits for training text: the real host, sandbox and shared memory, and a consumer that sleeps.

python -m bench.loader --json [--step-ms 142] [--rows 40] [--seconds 20]

The consumer asks for a batch of the overnight preset's shape, sleeps as long as a step would take, and asks again. By
default that is the time of a step at the goal of 45 % utilisation of an H100: a number worked out from the preset, not
measured. Sleeping stands for a GPU at work while the host's cores are free. `wait_share` is the time spent waiting, over
all the time. Text is made of the King James Bible's verses; it is read through the page cache, as training text is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from arl_core.edit import read_constants
from bench.prepare import generate
from frozen_env.contract import ResearchError
from frozen_env.problem.data import prepare
from frozen_env.runtime.performance import TRAINING_PASSES, peak_flops
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, read_preset

ROOT = Path(__file__).resolve().parents[1]
GOAL_MFU, GOAL_DEVICE = 0.45, "NVIDIA H100 80GB HBM3"
TEXT_MB = 8

CONSUMER = """
import json
import time

import torch

import frozen_env as env

ROWS = 40  # rows per batch
STEP_S = 0.1  # seconds that a step takes


class Nothing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(env.vocab_size(), 1)
        self.head = torch.nn.Linear(1, env.vocab_size(), bias=False)

    def forward(self, tokens_BT):
        return self.head(self.embed(tokens_BT))


def build_model():
    return Nothing()


if __name__ == "__main__":
    model, waits, step = build_model(), [], 0
    env.dummy_batch(ROWS)
    env.start()
    while env.progress() < 1.0:
        asked_s = time.perf_counter()
        env.next_batch(ROWS)
        waits.append(time.perf_counter() - asked_s)
        time.sleep(STEP_S)
        step += 1
        env.report(step, 1.0)
    print(json.dumps([round(1000 * wait, 3) for wait in sorted(waits)][:: max(1, len(waits) // 100)]))
    env.submit(model)
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.loader", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--step-ms", type=float, help="time of a step (default: what 45 %% of an H100 would take)")
    parser.add_argument("--rows", type=int, default=40, help="rows per batch (default: 40, the preset's)")
    parser.add_argument("--seconds", type=float, default=20, help="of asking for text")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    step_s = options.step_ms / 1000 if options.step_ms else goal_step_s()
    figures = measure(step_s, options.rows, options.seconds)
    for key, value in figures.items():
        print(f"{key:16} {value:.6g}" if isinstance(value, float) else f"{key:16} {value}")
    if options.json:
        print(json.dumps(figures))
    return 0


def goal_step_s() -> float:
    """Return the seconds of a step of the overnight preset at GOAL_MFU, from its constants."""
    values = read_preset("overnight")["environment"]
    known = read_constants((ROOT / "target" / "train.py").read_text(encoding="utf-8"))
    width, length = int(known["WIDTH"]), int(values["seq_len"])
    block = (4 + 2 * int(known["MLP_RATIO"])) * width * width
    forward_flops = 2 * (int(known["DEPTH"]) * block + width * int(values["vocab_size"]))
    forward_flops += 4 * int(known["DEPTH"]) * width * length
    peak = peak_flops(GOAL_DEVICE)
    assert peak is not None, "the goal's device is in the table"
    return int(known["BATCH_ROWS"]) * length * TRAINING_PASSES * forward_flops / (GOAL_MFU * peak)


def measure(step_s: float, rows: int, seconds: float) -> dict[str, Any]:
    """Return the share of time spent waiting and the waits' spread. Raises ResearchError when the consumer fails."""
    source = CONSUMER.replace("ROWS = 40", f"ROWS = {rows}").replace("STEP_S = 0.1", f"STEP_S = {step_s}")
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        path = Path(folder)
        generate(path / "shards", TEXT_MB, 1)
        spec = cpu_spec(path / "shards", seconds)
        prepare(spec, path / "data", print)
        (path / "run").mkdir()
        with Host(spec, path / "data") as host:
            result = host.run(source, seed=0, place=path / "run")
    known = result.extra.get("performance", {})
    if result.score is None or known.get("wait_share") is None:
        raise ResearchError(f"the consumer failed: {result.reason}; {result.log_tail[-300:]}")
    waits_ms = json.loads(result.log_tail.strip().splitlines()[-1])
    return {
        "wait_share": known["wait_share"],
        "wait_ms_median": waits_ms[len(waits_ms) // 2],
        "wait_ms_largest": waits_ms[-1],
        "batches": result.reports[-1].step,
        "step_ms": 1000 * step_s,
        "rows": rows,
        "seq_len": spec.seq_len,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def cpu_spec(shards: Path, seconds: float) -> EnvironmentSpec:
    """The overnight preset's shapes on a CPU, with little to score and patience for busy machines."""
    changes = {"corpus_path": str(shards), "validation_shard": "", "device": "cpu", "budget_s": seconds, "threads": 1}
    changes |= {"held_out_rows": 2, "probe_rows": 1, "grace_s": 60.0, "overrun_s": 50.0}
    changes |= {"score_limit_s": 300.0, "settling_s": 150.0}
    return EnvironmentSpec.from_json(read_preset("overnight")["environment"] | changes)


if __name__ == "__main__":
    sys.exit(main())
