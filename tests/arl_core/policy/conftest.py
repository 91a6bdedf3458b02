"""A tiny random policy and a small source to edit; single-threaded, because the tests share their cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from arl_core.policy.policy import Policy
from arl_core.policy.settings import PolicySettings

SOURCE = '''"""A small file to edit."""

import torch
from torch import nn

DEPTH = 4  # blocks
MUON_LR = 2e-3  # peak step of the matrices
WARMDOWN = 0.5  # falls at the end


class Net(nn.Module):
    """Two layers."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)

    def forward(self, x):
        x = self.up(x)
        for _ in range(DEPTH):
            x = torch.relu(x)
        if x.is_cuda:
            return x
        return self.down(x)


def share(progress):
    left = min(1.0, (1.0 - progress) / WARMDOWN)
    return left


def other(progress):
    left = 1.0
    return left
'''
PROMPT = "## Task\nPropose one edit of the source.\n"


def tiny(**changes: object) -> PolicySettings:
    fields = {"model": "tiny-random", "device": "cpu", "threads": 1, "max_new_tokens": 192}
    return PolicySettings.model_validate({**fields, **changes})


@pytest.fixture
def load() -> Callable[..., Policy]:
    """Load a fresh tiny policy with changed settings."""
    return lambda **changes: Policy.load(tiny(**changes), Path("unused"))


@pytest.fixture(scope="session")
def shared_policy() -> Policy:
    """A tiny policy for tests that only sample."""
    return Policy.load(tiny(), Path("unused"))
