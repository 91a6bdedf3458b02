"""Memory on a GPU that a candidate may share with the policy: what does not fit now may fit when that one has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from arl_core.errors import PolicyError

TRIES = 30
PAUSE_S = 30.0  # a quarter of an hour in all: candidates of 300 s and their scoring end in it

Done = TypeVar("Done")


def when_there_is_room(work: Callable[[], Done], what: str, pause_s: float = PAUSE_S) -> Done:
    """Do the work; where GPU memory runs out, give back what is reserved and try again for a while. Raises PolicyError then.

    Work that failed must have changed nothing. A candidate's memory has no limit of ours on a GPU, and no edit may end a campaign.
    """
    for attempt in range(TRIES):
        try:
            return work()
        except torch.OutOfMemoryError as error:
            last = str(error).splitlines()[0]
        torch.cuda.empty_cache()  # outside of the handler: its traceback holds what was allocated
        if attempt:
            time.sleep(pause_s)
    raise PolicyError(
        f"the GPU ran out of memory {TRIES} times while the policy {what}: {last} Leave it a GPU of its own (ARL_GPUS names the "
        "candidates'), or set policy.offload, a smaller policy.prompt_tokens or policy.choices"
    )
