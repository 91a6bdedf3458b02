"""The base computes in a type that its device can multiply."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from arl_core.policy import weights
from arl_core.policy.settings import PolicySettings


@pytest.mark.parametrize(
    ("device", "dtype", "gpu", "cpu_can", "found"),
    [
        ("auto", "auto", True, False, torch.bfloat16),
        ("auto", "auto", False, True, torch.bfloat16),
        ("auto", "auto", False, False, torch.float32),  # 65 times faster there
        ("cpu", "auto", True, False, torch.float32),
        ("cpu", "bfloat16", False, False, torch.bfloat16),  # as was asked for
        ("auto", "float32", True, True, torch.float32),
    ],
)
def test_the_base_takes_bfloat16_where_it_is_not_imitated(monkeypatch, device, dtype, gpu, cpu_can, found) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(weights, "_cpu_multiplies_bf16", lambda: cpu_can)
    assert weights.base_dtype(PolicySettings(device=device, dtype=dtype)) == found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86 processors")
def test_this_machine_is_judged_by_its_instructions() -> None:
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert weights._cpu_multiplies_bf16() == bool({"avx512_bf16", "amx_tile"} & set(words))
