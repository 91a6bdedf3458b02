"""The policy on disk: adapter, value head, optimizer, statistics and recent rollouts, atomically.

A checkpoint is a folder of safetensors, JSON and npz (never pickle). It is written beside its place, fsynced, and
renamed into it; `manifest.json` holds every file's sha256, and a checkpoint's digest is the sha256 of that manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl_core.durable import fsync
from arl_core.errors import CheckpointDamaged, PolicyError

FORMAT = 1
TENSORS, STATE, MANIFEST = "policy.safetensors", "state.json", "manifest.json"


def write(folder: Path, tensors: Mapping[str, Tensor], state: dict[str, Any], blobs: dict[str, bytes]) -> str:
    """Write a checkpoint at `folder` and return its digest; what stood there before is replaced as a whole.

    Raises PolicyError when the disk refuses (full, read-only); an older checkpoint at `folder` is then still whole.
    """
    from safetensors.torch import save_file

    folder = folder.absolute()
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps({"format": FORMAT, **state}, sort_keys=True))
        for name, blob in blobs.items():
            (scratch / name).write_bytes(blob)
        manifest = json.dumps({p.name: _sha256(p) for p in sorted(scratch.iterdir())}, sort_keys=True)
        (scratch / MANIFEST).write_text(manifest)
        for path in scratch.iterdir():
            fsync(path)
        fsync(scratch)
        _put(scratch, folder)
        return hashlib.sha256(manifest.encode()).hexdigest()
    except OSError as error:
        cause = f"cannot write the policy checkpoint {folder.name}: {error}"
        raise PolicyError(f"{cause}. Free disk space and resume") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def read(folder: Path, digest: str = "") -> tuple[dict[str, Tensor], dict[str, Any], dict[str, bytes]]:
    """Return (tensors, state, blobs) of a checkpoint after checking every file, and the digest when one is given.

    Raises CheckpointDamaged when it is missing, torn, altered or not the one that the digest names, PolicyError when it has
    another format.
    """
    from safetensors.torch import load_file

    remedy = "resume from an earlier checkpoint, or start a new campaign"
    try:
        manifest = (folder / MANIFEST).read_text()
        if digest and hashlib.sha256(manifest.encode()).hexdigest() != digest:
            raise CheckpointDamaged(f"policy checkpoint {folder} is not the one that the memory recorded; {remedy}")
        names: dict[str, str] = json.loads(manifest)
        for name, expected in names.items():
            if _sha256(folder / Path(name).name) != expected:
                raise CheckpointDamaged(f"policy checkpoint {folder} is damaged: {name} changed since; {remedy}")
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        blobs = {n: (folder / n).read_bytes() for n in names if n not in (TENSORS, STATE)}
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError) as error:
        raise CheckpointDamaged(f"policy checkpoint {folder} cannot be read ({error}); {remedy}") from error
    if state.pop("format", None) != FORMAT:
        raise PolicyError(f"policy checkpoint {folder} has another format; {remedy}")
    return tensors, state, blobs


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """Return an Adam's state as flat tensors named optimizer/SLOT/PARAMETER; `names` maps id(parameter) to its name."""
    flat = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            flat[f"optimizer/{slot}/{names[id(parameter)]}"] = torch.as_tensor(value)
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], names: dict[int, str]) -> None:
    """Put back what optimizer_tensors took; a parameter without stored state starts afresh."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in tensors.items():
                kind, _, rest = key.partition("/")
                slot, _, name = rest.partition("/")
                if kind != "optimizer" or name != names[id(parameter)]:
                    continue
                # Adam keeps its step count on the CPU
                moved = value.clone() if slot == "step" else value.to(parameter.device, copy=True)
                optimizer.state[parameter][slot] = moved


def _put(scratch: Path, folder: Path) -> None:
    """Rename a finished folder into its place; a folder there moves aside first and goes when the new one stands."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(scratch, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise
    fsync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
