"""What a run's speed depends on and the frozen environment does not hold: torch, its compiler, and the GPU's driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "triton")
DRIVER = Path("/proc/driver/nvidia/version")  # "NVRM version: NVIDIA UNIX … Kernel Module  580.95.05  Release Build …"


def software(driver: Path = DRIVER) -> dict[str, str]:
    """Return their versions on this machine; what is not there is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        told = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)\s", driver.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        told = None
    return found | ({"driver": told[1]} if told else {})


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Warn that runs of before may not compare with those to come; '' where nothing changed, or nothing is known of before."""
    if not before:
        return ""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    told = ", ".join(f"{name} {before.get(name, 'none')} → {now.get(name, 'none')}" for name in names)
    return told and (
        f"warning: {told} since this campaign last began. Runs that became faster or slower by it do not compare with those of "
        "before, and look better or worse for it: --fresh begins anew"
    )
