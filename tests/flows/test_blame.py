"""Whose fault a crash is: how a GPU shows that it fails, and what room a disk must have."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from arl_core.errors import ConfigError
from flows import blame
from flows.blame import check_disk
from frozen_env.runtime import gpu_lock
from frozen_env.spec import EnvironmentSpec


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((0, "warm-up\n60000000000 80000000000\n", ""), ""),
        ((0, "2000000000 80000000000\n", ""), "has 1907 of 76294 MiB free while no candidate runs there"),
        (
            (1, "", "Traceback\nRuntimeError: CUDA error: device unavailable\n"),
            "RuntimeError: CUDA error: device unavail",
        ),
        (None, "took more than 150 s"),
    ],
)
def test_how_a_gpu_fails(monkeypatch, said, why):
    monkeypatch.setattr(gpu_lock, "ask", lambda *_: said)
    found = blame.gpu_fails("a")
    assert why in found
    assert bool(found) is bool(why)


def test_the_probe_of_a_gpu_fails_where_there_is_none():
    assert "failed a small computation of ours" in blame.gpu_fails("GPU-none")


@pytest.mark.parametrize(
    ("scratch_mb", "submission_mb", "free_mb", "fits"),
    [
        (None, None, 511, False),
        (None, None, 513, True),
        (64, 16, 511, False),
        (64, 16, 513, True),
        (16384, 4096, 20479, False),
        (16384, 4096, 20481, True),
    ],
)
def test_room_is_wanted_for_all_that_a_candidate_may_write(monkeypatch, scratch_mb, submission_mb, free_mb, fits):
    monkeypatch.setattr(blame.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mb * 2**20))
    known = {"scratch_limit_mb": scratch_mb, "submission_limit_mb": submission_mb}
    environment = EnvironmentSpec(name="x", **known) if scratch_mb else None
    assert (blame.disk_full(Path("not/there/yet"), environment) == "") is fits
    with contextlib.nullcontext() if fits else pytest.raises(ConfigError, match=r"MiB free .*make room and resume"):
        check_disk(Path("not/there/yet"), environment)
