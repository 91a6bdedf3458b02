"""A seed decides what is drawn inside; outside nothing changes, however it ends."""

from __future__ import annotations

import pytest
import torch

from arl_core.policy.seeded import seeded


def test_draws_follow_the_seed_inside_and_go_on_as_before_outside() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
        with seeded(2):
            torch.rand(7)
        after_inner = torch.rand(1)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
        assert torch.equal(torch.rand(1), after_inner)
    assert torch.equal(torch.rand(2), expected)


def test_an_error_inside_gives_the_state_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), seeded(1):
        torch.rand(3).view(2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_its_generator_follows_too() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    drawn = []
    for _ in range(2):
        with seeded(3, device):
            drawn.append(torch.rand(4, device=device))
    assert torch.equal(*drawn)
    assert torch.equal(torch.cuda.get_rng_state(), before)
