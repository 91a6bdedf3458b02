"""Draws from torch's global generators that a seed decides.

PyTorch seeds them from the operating system at a process's start, so a campaign that goes on in another process would go on
with other numbers. Ours are drawn from generators of their own (sampler.py); a model from elsewhere may draw from the global
ones in its forward pass. Their state is derived each time instead of saved: a proposal's from its batch's first seed, an
update's from policy.seed and the number of updates. So such a model repeats itself after a kill, for the same batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let the generators of the CPU, and of `device` if it is a GPU, begin at `seed` inside; afterwards they are as before.

    `seed` is in [-2^63, 2^64). Not for two threads at once: the generators are the process's.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also move the GPUs that are not given back
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
