"""The base computes in a type that its device can multiply."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from arl_core.errors import PolicyError
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


def test_the_weights_of_a_hub_s_policy_are_fetched_once_and_without_what_nobody_reads(monkeypatch, tmp_path) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.append((name, how)))
    weights.fetch(PolicySettings(model="someone/a-model"), tmp_path)
    weights.fetch(PolicySettings(model=str(tmp_path)), tmp_path)  # a folder
    weights.fetch(PolicySettings(model="tiny-random"), tmp_path)
    assert [name for name, _ in asked] == ["someone/a-model"]
    assert "*.safetensors" in asked[0][1]["allow_patterns"]


def test_a_hub_that_cannot_be_reached_is_an_error_with_its_remedy(monkeypatch, tmp_path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("we could not connect to the hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        PolicyError, match=r"cannot load the policy 'a/b': we could not connect to the hub. Set policy.model"
    ):
        weights.fetch(PolicySettings(model="a/b"), tmp_path)
