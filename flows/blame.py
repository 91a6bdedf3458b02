"""Whose fault a crash is: the edit's, or that of the GPU or the disk below it. What is not the edit's is not counted.

Also asked before a run: whether candidates have a GPU where they must have one, and whether what they write fits on the disk.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from arl_core.errors import ConfigError
from frozen_env.contract import Cause, Ending, HostError, RunResult
from frozen_env.runtime import gpu_lock
from frozen_env.runtime.words import last_line, out_of_memory
from frozen_env.spec import EnvironmentSpec

MIN_FREE_MB = 512  # logs and a policy checkpoint, however little a candidate may write
NO_GPU = (
    "environment.device is cuda, but no GPU answers: see `nvidia-smi`, and whether ARL_GPUS or CUDA_VISIBLE_DEVICES "
    "names one that is there"
)
TO_BLAME = (Ending.CRASHED, Ending.TIMED_OUT)  # endings for which somebody is to blame
# A GPU that hangs or fails could have caused these, and a crash whose words speak of it.
GPU_CAUSES = (
    Cause.OUT_OF_MEMORY,
    Cause.SIGNAL,
    Cause.SILENCE,
    Cause.NO_START,
    Cause.NO_SUBMISSION,
    Cause.BAD_MODEL,
    Cause.SLOW_MODEL,
    Cause.OVERRUN,  # of a scoring worker, which on a GPU has seconds to begin
)
GPU_WORDS = ("cuda", "cudnn", "cublas", "acceleratorerror")
PROBE_LIMIT_S = 150.0  # torch from a cold disk, and a driver that loads its firmware
# Exact in float32 and TF32: 2^27. The figures are the memory that is free beside ours, and all of it, in bytes.
PROBE = (
    "import torch; x = torch.ones(512, 512, device='cuda'); assert float((x @ x).sum()) == 2**27; "
    "print(*torch.cuda.mem_get_info())"
)
LEAST_FREE = 1 / 3  # of a GPU's memory while no candidate runs on it; the policy may be there
REMEDY = "it is not counted. See `nvidia-smi` and `dmesg`, then resume"


class GpuLost(HostError):
    """A GPU is gone, computes no more, or is full of what others put there."""


def gpu_names(environment: EnvironmentSpec) -> list[str]:
    """Return the GPUs that candidates may use, [] where they run on the CPU.

    Raises HostError when they must have one and none answers: a candidate without a lock and a name would see them all.
    """
    names = gpu_lock.visible() if environment.device != "cpu" else []
    if environment.device == "cuda" and not names:
        raise HostError(NO_GPU)
    return names


def disk_full(folder: Path, environment: EnvironmentSpec | None = None) -> str:
    """Say that what one candidate may write does not fit on the disk of `folder`; '' when it does."""
    most_mb = environment.scratch_limit_mb + environment.submission_limit_mb if environment else 0
    wanted_mb = max(MIN_FREE_MB, most_mb)
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free_mb = shutil.disk_usage(there).free / 2**20
    return f"only {free_mb:.0f} MiB free in {there}, {wanted_mb} wanted" if free_mb < wanted_mb else ""


def check_disk(folder: Path, environment: EnvironmentSpec | None = None) -> None:
    """Raise ConfigError when what a candidate may write would not fit: a full disk is no edit's fault.

    Without an environment only logs and a checkpoint are asked for.
    """
    if full := disk_full(folder, environment):
        raise ConfigError(f"{full}; make room and resume, or set `memory` elsewhere")


def check_blame(
    what: str, result: RunResult | None, gpu: gpu_lock.HeldGpu | None, folder: Path, environment: EnvironmentSpec
) -> None:
    """Raise when what a crashed candidate stood on is to blame: GpuLost, or HostError for a full disk.

    `result` is None when its host died too. A crash that a GPU could have caused has the GPU compute something of ours; so
    has any crash while no GPU at all is listed, as the listing hangs when one of several does.
    """
    there = gpu_lock.visible() if gpu is not None else []
    if gpu is not None and there and gpu.name not in there:
        raise GpuLost(f"GPU {gpu.name} has vanished while {what} ran; {REMEDY}")
    if full := disk_full(folder, environment):
        raise HostError(f"{full}, after {what} crashed; it is not counted. Make room, then resume")
    asked = gpu is not None and (not there or result is None or _could_be_the_gpu(result))
    if gpu is not None and asked and (why := gpu_fails(gpu.name)):
        raise GpuLost(f"GPU {gpu.name} {why}, after {what} crashed; {REMEDY}")


def gpu_fails(name: str) -> str:
    """Say how a GPU that a candidate crashed on fails a small computation of ours, or lacks memory for one; '' when it does not."""
    command = [sys.executable, "-c", PROBE]
    said = gpu_lock.ask(command, PROBE_LIMIT_S, os.environ | {"CUDA_VISIBLE_DEVICES": name})
    if said is None:
        return f"took more than {PROBE_LIMIT_S:.0f} s for a small computation of ours"
    code, output, errors = said
    ours_mb = _reserved_here_mb()
    if code and ours_mb and out_of_memory(errors):
        return (
            ""  # it may be the policy's own memory that fills it, for which an edit may have to wait but no GPU is lost
        )
    if code:
        return f"failed a small computation of ours ({last_line(errors) or f'exit code {code}'})"
    free_mb, total_mb = (int(word) / 2**20 for word in output.split()[-2:])
    if free_mb + ours_mb < LEAST_FREE * total_mb:
        return f"has {free_mb:.0f} of {total_mb:.0f} MiB free while no candidate runs there: other programs use it"
    return ""


def _could_be_the_gpu(result: RunResult) -> bool:
    return result.cause in GPU_CAUSES or any(word in result.reason.lower() for word in GPU_WORDS)


def _reserved_here_mb() -> float:
    """GPU memory of this process, MiB: the policy's; 0 where there is none."""
    torch = sys.modules.get("torch")
    return torch.cuda.memory_reserved() / 2**20 if torch is not None and torch.cuda.is_initialized() else 0.0
