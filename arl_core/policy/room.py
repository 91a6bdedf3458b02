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


def when_there_is_room(
    work: Callable[[], Done], what: str, say: Callable[[str], None] = lambda _line: None, pause_s: float = PAUSE_S
) -> Done:
    """Do the work; where GPU memory runs out, give back what is reserved and try again for a while. Raises PolicyError then.

    Work that failed must have changed nothing. A candidate's memory has no limit of ours on a GPU, and no edit may end a campaign.
    """
    last = ""
    for attempt in range(TRIES):
        if attempt == 1:
            say(f"the policy waits for memory on its GPU, {TRIES * pause_s / 60:.0f} minutes at most: {last}")
        elif attempt > 1:
            time.sleep(pause_s)
        try:
            return work()
        except torch.OutOfMemoryError as error:
            last = (str(error).splitlines() or ["out of memory"])[0]
        torch.cuda.empty_cache()  # outside of the handler: its traceback holds what was allocated
    raise PolicyError(
        f"the GPU ran out of memory {TRIES} times while the policy {what}: {last} Leave it a GPU of its own (ARL_GPUS names the "
        "candidates'), or set policy.offload, a smaller policy.prompt_tokens, policy.choices (proposing), policy.batch_edits or "
        "policy.reuse_edits (learning)"
    )
