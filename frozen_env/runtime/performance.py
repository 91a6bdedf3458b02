"""How well a run used its time and its device: figures for people and for the policy's prompt, never for the score.

Times are the supervisor's. What only the candidate or its model can know (steps, time it waited for text, memory of the
GPU, floating-point operations of a forward pass) is self-reported and marked so in docs/metrics.md.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from frozen_env.contract import Report

# Dense bf16 operations per second, without sparsity, from NVIDIA's data sheets. The first name that occurs in the
# device's name counts, so the more special ones come first.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("B100", 1750e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10", 125e12),
    ("RTX PRO 6000", 504e12),
    ("RTX 6000 Ada", 364e12),
    ("RTX 5090", 210e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
TRAINING_PASSES = 3  # a backward pass costs twice a forward pass
NUMBERS_TOLD = ("waited_s", "peak_vram_mb")  # what a candidate tells when it submits
LARGEST = 1e15


def peak_flops(device_name: str) -> float | None:
    """Return a device's dense bf16 operations per second; None for one that is not in the table, a CPU for instance."""
    return next((flops for name, flops in PEAK_FLOPS if name in device_name), None)


def numbers(told: object, names: Sequence[str]) -> dict[str, float]:
    """Pick finite numbers of ordinary size that are not negative out of something untrusted."""
    if not isinstance(told, dict):
        return {}
    found: dict[str, float] = {}
    for name in names:
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST:  # no NaN either
            found[name] = float(value)
    return found


def seconds_per_step(reports: Sequence[Report]) -> float | None:
    """Return the median time of a step between two reports; None with fewer than two reports of different steps."""
    pairs = itertools.pairwise(reports)
    paces = [(b.elapsed_s - a.elapsed_s) / (b.step - a.step) for a, b in pairs if b.step > a.step]
    return statistics.median(paces) if paces else None


def step_share(reports: Sequence[Report], budget_s: float) -> float | None:
    """Return the share of the budget that went into steps at their usual pace, at most 1; None where it is not known.

    What is missing from 1 was lost: compiling after the start, stalls, late first steps, text that did not come.
    """
    pace_s = seconds_per_step(reports)
    if pace_s is None or not reports:
        return None
    return min(1.0, max(report.step for report in reports) * pace_s / budget_s)


def figures(
    *,
    reports: Sequence[Report],
    training_s: float,
    budget_s: float,
    tokens: int,
    device_name: str,
    told: dict[str, float],
) -> dict[str, Any]:
    """Return what is known of a run; what is not (on a CPU: `mfu`, `peak_vram_mb`) is None.

    tokens_per_s: training tokens served, over the training time
    step_s, step_share: see above
    wait_share: share of the training time that the candidate waited for text
    parameters, flops_per_token: of the submitted model, a forward and a backward pass
    mfu: model FLOPs utilisation: operations that the model needs, over those that the device could have done in the time
    """
    known: dict[str, Any] = {
        "device": device_name,
        "tokens_per_s": tokens / training_s if training_s > 0 else None,
        "step_s": seconds_per_step(reports),
        "step_share": step_share(reports, budget_s),
        "wait_share": told["waited_s"] / training_s if training_s > 0 and "waited_s" in told else None,
        "peak_vram_mb": told.get("peak_vram_mb"),
        "parameters": told.get("parameters"),
        "flops_per_token": None,
        "mfu": None,
    }
    if "forward_flops_per_token" in told:
        known["flops_per_token"] = TRAINING_PASSES * told["forward_flops_per_token"]
    peak = peak_flops(device_name)
    if peak is not None and known["flops_per_token"] is not None and known["tokens_per_s"] is not None:
        known["mfu"] = known["flops_per_token"] * known["tokens_per_s"] / peak
    return known
