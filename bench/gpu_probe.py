"""Does CUDA work where candidates run? Its start, a kernel, the compilers and running out of memory, tried in seconds.

python -m bench.gpu_probe                                  # before the first night on a machine; `make data` is enough
python -m bench.gpu_probe --device cpu                     # tries the script itself

A candidate goes through the steps inside the sandbox, and another one outside. What fails inside alone is the sandbox's doing:
docs/benchmark.md names what each step needs. Exit code 1 when a step fails inside. The last line is the object:
{"inside": {STEP: "ok" or the error}, "outside": {...}}
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from arl_core.config import load_config
from frozen_env.contract import Cause, ResearchError
from frozen_env.fetch import data_dir
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host

MARK = "probe-step "
STARTUP_S = 300.0  # torch from a cold disk and a first compilation: nothing here ever starts to train
STEPS = {"cuda": ("driver", "kernel", "compiled", "out_of_memory"), "cpu": ("kernel", "out_of_memory")}
CANDIDATE = (
    f"MARK = {MARK!r}"
    """
import ctypes

import torch

import frozen_env as env

DEVICE = env.device()


def driver():
    code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    assert code == 0, f"cuInit returned {code}"


def kernel():
    assert (torch.ones(8, device=DEVICE) + 1).sum().item() == 16


def compiled():
    x = torch.ones(64, device=DEVICE, requires_grad=True)
    torch.compile(lambda x: (x.sin() * 2).sum())(x).backward()
    assert x.grad is not None


for step in (driver, kernel, compiled) if DEVICE == "cuda" else (kernel,):
    try:
        step()
        print(MARK + step.__name__ + " ok", flush=True)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        print(MARK + step.__name__ + " " + words[-300:], flush=True)
torch.empty(1 << 50, dtype=torch.uint8, device=DEVICE)
"""
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_probe", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=STEPS, default="cuda")
    device = parser.parse_args(arguments).device
    try:
        found = {
            "outside": probe(device, "off"),
            "inside": probe(device, "on"),
        }  # a cold start is not the sandbox's doing
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for step in STEPS[device]:
        print(f"{step:14} inside: {found['inside'][step]:40} outside: {found['outside'][step]}")
    print(json.dumps(found))
    return 0 if set(found["inside"].values()) == {"ok"} else 1


def probe(device: str, sandbox: Literal["on", "off"]) -> dict[str, str]:
    """Return what came of each step: "ok" or the last words of its error. Raises ResearchError where no host starts."""
    environment = load_config("embedded", {"environment.device": device}).environment
    spec = replace(environment, sandbox=sandbox, startup_allowance_s=STARTUP_S)
    with tempfile.TemporaryDirectory(prefix="gpu-probe-") as folder, held_for(device) as gpu:
        place = Path(folder)
        with Host(spec, data_dir(), place / "host.log", gpu) as host:
            result = host.run(CANDIDATE, seed=0, place=place)
    found = dict.fromkeys(STEPS[device], "not reached")
    for line in result.log_tail.splitlines():
        if line.startswith(MARK):
            step, _, words = line.removeprefix(MARK).partition(" ")
            if step in found:
                found[step] = words
    is_told = result.cause is Cause.OUT_OF_MEMORY
    return found | {"out_of_memory": "ok" if is_told else f"{result.cause}: {result.reason}"}


if __name__ == "__main__":
    sys.exit(main())
