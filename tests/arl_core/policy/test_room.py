"""A policy whose GPU a candidate has filled waits for it to end, and changes nothing by what failed."""

from __future__ import annotations

import pytest
import torch

from arl_core.errors import PolicyError
from arl_core.policy import room
from arl_core.policy.room import when_there_is_room


def failing(times: int):
    calls = []

    def work() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
        return "done"

    return work, calls


@pytest.mark.parametrize("times", [0, 1, 5])
def test_what_did_not_fit_is_tried_again(times):
    work, calls = failing(times)
    assert when_there_is_room(work, "proposed", pause_s=0.0) == "done"
    assert len(calls) == times + 1


def test_what_never_fits_is_an_error_with_its_remedy():
    work, calls = failing(10_000)
    with pytest.raises(
        PolicyError, match=r"out of memory 30 times while the policy learned: CUDA out of .*ARL_GPUS.*policy.offload"
    ):
        when_there_is_room(work, "learned", pause_s=0.0)
    assert len(calls) == room.TRIES


def test_other_errors_are_nobody_s_to_repeat():
    def broken() -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        when_there_is_room(broken, "learned", pause_s=0.0)
