"""A GPU is one candidate's at a time, and its lock dies with whoever holds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frozen_env.contract import HostError
from frozen_env.runtime import gpu_lock

ROOT = Path(__file__).resolve().parents[3]
NVIDIA = {"0": "GPU-aaaa", "1": "GPU-bbbb"}


def test_each_holder_gets_a_gpu_of_its_own(tmp_path):
    with contextlib.closing(gpu_lock.hold(["a", "b"], folder=tmp_path)) as first:
        with contextlib.closing(gpu_lock.hold(["a", "b"], folder=tmp_path)) as second:
            assert (first.name, second.name) == ("a", "b")
            with pytest.raises(HostError, match=r"every GPU is taken.*a, b"):
                gpu_lock.hold(["a", "b"], folder=tmp_path)
        with contextlib.closing(gpu_lock.hold(["a", "b"], folder=tmp_path)) as third:
            assert third.name == "b"


def test_a_machine_without_a_gpu_says_so(tmp_path):
    with pytest.raises(HostError, match="there is none"):
        gpu_lock.hold([], folder=tmp_path)


def test_a_lock_outlives_its_taker_in_the_process_that_inherited_it_and_no_longer(tmp_path):
    """The host inherits the lock: as long as it lives its candidate may be on the GPU."""
    code = f"""
import subprocess, sys, time
from pathlib import Path
from frozen_env.runtime import gpu_lock
held = gpu_lock.hold(["a"], folder=Path({str(tmp_path)!r}))
host = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(held.fd,))
print(host.pid, flush=True)
time.sleep(60)
"""
    taker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert taker.stdout is not None
    host = int(taker.stdout.readline())
    taker.kill()
    taker.wait()
    taker.stdout.close()
    with pytest.raises(HostError):
        gpu_lock.hold(["a"], folder=tmp_path)
    os.kill(host, signal.SIGKILL)
    gpu_lock.hold(["a"], wait_s=10, folder=tmp_path).close()


def test_waiting_ends_when_a_gpu_is_free(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import time; from pathlib import Path; from frozen_env.runtime import gpu_lock; "
            f"held = gpu_lock.hold(['a'], folder=Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(1)",
        ],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    began_s = time.monotonic()
    gpu_lock.hold(["a"], wait_s=30, folder=tmp_path).close()
    assert time.monotonic() - began_s > 0.3
    holder.wait()
    holder.stdout.close()


@pytest.mark.parametrize(
    ("variables", "listed", "wanted"),
    [
        ({}, NVIDIA, ["GPU-aaaa", "GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, NVIDIA, ["GPU-bbbb"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "ARL_GPUS": "1"}, NVIDIA, ["GPU-bbbb"]),
        ({"ARL_GPUS": "GPU-aaaa, GPU-cccc"}, NVIDIA, ["GPU-aaaa"]),  # the other one has vanished
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, NVIDIA, ["MIG-1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, NVIDIA, []),
        ({}, None, []),
        ({"ARL_GPUS": "x,y"}, None, ["x", "y"]),
        ({}, {}, []),
    ],
)
def test_which_gpus_there_are(monkeypatch, variables, listed, wanted):
    for name in ("ARL_GPUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gpu_lock, "listing", lambda: listed)
    assert gpu_lock.visible() == wanted


def test_a_listing_below_a_driver_that_hangs_is_given_up(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_lock, "LISTING_LIMIT_S", 0.2)
    began_s = time.monotonic()
    assert gpu_lock.listing() == {}
    assert time.monotonic() - began_s < 10
