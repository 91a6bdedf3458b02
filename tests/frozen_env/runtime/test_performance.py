"""Figures of a run: what they say, what they leave out, and that nobody's word breaks them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frozen_env.contract import Report
from frozen_env.runtime import flops
from frozen_env.runtime.performance import NUMBERS_TOLD, figures, numbers, peak_flops, seconds_per_step, step_share


def reports(*pairs: tuple[int, float]) -> list[Report]:
    return [Report(step=step, elapsed_s=elapsed_s, fraction=0.5, loss=1.0) for step, elapsed_s in pairs]


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_steps_time_is_the_usual_one_whatever_the_reports_skip() -> None:
    assert seconds_per_step(reports((10, 1.0), (20, 2.0), (30, 3.0), (40, 9.0))) == pytest.approx(0.1)
    assert seconds_per_step(reports((1, 1.0), (2, 1.5), (4, 2.5))) == pytest.approx(0.5)


@pytest.mark.parametrize("told", [[], [(1, 0.1)], [(5, 1.0), (5, 2.0)], [(5, 1.0), (3, 2.0)]])
def test_without_two_reports_of_different_steps_nothing_is_known(told: list[tuple[int, float]]) -> None:
    assert seconds_per_step(reports(*told)) is None
    assert step_share(reports(*told), 10.0) is None


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ([(step, 0.1 * step) for step in range(1, 100)], 0.99),
        ([(step, 3.0 + 0.1 * step) for step in range(1, 70)], 0.69),  # three seconds lost at the start
        ([(step, 0.1 * step + (2.0 if step > 40 else 0.0)) for step in range(1, 80)], 0.79),  # a stall in the middle
        ([(step, 0.2 * step) for step in range(1, 100)], 1.0),  # steps that were never taken do not count
    ],
)
def test_the_share_of_steps_leaves_out_what_was_lost(told: list[tuple[int, float]], share: float) -> None:
    assert step_share(reports(*told), 10.0) == pytest.approx(share)


# --- the whole --------------------------------------------------------------------------------------------------------


def measure(device_name: str, told: dict[str, float], training_s: float = 300.0) -> dict[str, float | None]:
    curve = reports(*((step, 0.1 * step) for step in range(1, 3000)))
    return figures(
        reports=curve, training_s=training_s, budget_s=300.0, tokens=300_000_000, device_name=device_name, told=told
    )


def test_utilisation_is_operations_needed_over_operations_possible() -> None:
    known = measure("NVIDIA H100 80GB HBM3", {"forward_flops_per_token": 2e8, "waited_s": 3.0, "peak_vram_mb": 4e4})
    assert known["tokens_per_s"] == 1e6
    assert known["flops_per_token"] == pytest.approx(6e8)
    assert known["mfu"] == pytest.approx(6e14 / 989e12)
    assert known["wait_share"] == pytest.approx(0.01)
    assert known["peak_vram_mb"] == 4e4


def test_on_a_cpu_and_on_an_unknown_device_there_is_no_utilisation() -> None:
    for name in ("cpu", "", "Some Future GPU"):
        known = measure(name, {"forward_flops_per_token": 2e8})
        assert known["mfu"] is None
        assert known["flops_per_token"] == pytest.approx(6e8)
        assert known["peak_vram_mb"] is None


def test_a_run_that_never_started_has_no_rates() -> None:
    known = measure("NVIDIA H100 80GB HBM3", {"forward_flops_per_token": 2e8, "waited_s": 0.0}, training_s=0.0)
    assert (known["tokens_per_s"], known["mfu"], known["wait_share"]) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_each_device_has_its_own_peak(name: str, tera: float) -> None:
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize(
    "told",
    [None, True, [1.0], "text", {"waited_s": "1"}, {"waited_s": True}, {"waited_s": math.nan}, {"waited_s": math.inf},
     {"waited_s": -1.0}, {"waited_s": 10**400}, {"waited_s": [1.0]}, {"other": 1.0}],
)  # fmt: skip
def test_what_a_candidate_tells_is_a_number_or_nothing(told: object) -> None:
    assert numbers(told, NUMBERS_TOLD) == {}


def test_what_is_a_number_is_taken() -> None:
    assert numbers({"waited_s": 1, "peak_vram_mb": 2.5, "x": 3}, NUMBERS_TOLD) == {"waited_s": 1.0, "peak_vram_mb": 2.5}


# --- operations of a model --------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """One head of attention between two matrices: 2 · 2 · width² for these, 4 · T · width for attention, per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.into, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x = self.into(self.embed(tokens_BT)).unsqueeze(1)
        return self.out(nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True).squeeze(1))


def test_products_and_attention_are_counted_and_lookups_are_not() -> None:
    width, length = 32, 64
    facts = flops.facts(Attending(width), length, "cpu")
    assert facts["parameters"] == 10 * width + 2 * width * width
    assert facts["forward_flops_per_token"] == 4 * width * width + 4 * length * width


def test_a_model_that_cannot_be_counted_is_no_error() -> None:
    assert flops.facts(nn.Linear(3, 3), 8, "cpu") == {}
