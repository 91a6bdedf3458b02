"""Which GPUs a candidate gets: the ones of CUDA_VISIBLE_DEVICES, and the device files of no others.

NVIDIA's driver lists each GPU under /proc/driver/nvidia/gpus with its UUID and the number of its device file. Numbers in
CUDA_VISIBLE_DEVICES are taken in the order of PCI addresses (as with CUDA_DEVICE_ORDER=PCI_BUS_ID, which the host sets)
and handed on as UUIDs, because with some device files out of reach CUDA would count the others anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from frozen_env.contract import FrozenEnvError

LISTED = Path("/proc/driver/nvidia/gpus")
PCI = Path("/sys/bus/pci/devices")
UVM = "/dev/nvidia-uvm"
WAKE_LIMIT_S = 150.0  # torch from a cold disk, and a driver that loads its firmware
COMMON_DEVICES = (
    "/dev/nvidiactl",
    UVM,
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
)
CAPABILITIES = Path("/dev/nvidia-caps")  # its files: in the folder itself, root could make others
READABLE = (
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/devices",
    "/proc/modules",
    "/proc/sys/vm/mmap_min_addr",
    "/run/nvidia-persistenced",
    str(PCI),
    "/sys/devices/pci0000:00",
    "/sys/devices/system/memory",
    "/sys/module/nvidia",
    "/usr/local/cuda",
    "/usr/local/nvidia",
)


@dataclass(frozen=True)
class Gpu:
    uuid: str
    device: str
    name: str = ""  # "NVIDIA H100 80GB HBM3"
    address: str = ""  # on the PCI bus: "0000:3b:00.0"


def listed(folder: Path = LISTED) -> list[Gpu]:
    """All GPUs of this machine in the order of their PCI addresses."""
    found = []
    for path in sorted(folder.glob("*/information")):
        facts = dict(line.partition(":")[::2] for line in path.read_text(encoding="utf-8").splitlines())
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        found.append(
            Gpu(facts["GPU UUID"], f"/dev/nvidia{facts['Device Minor']}", facts.get("Model", ""), path.parent.name)
        )
    return found


def wake(folder: Path = LISTED) -> str:
    """Have the driver make its device files and learn its GPUs' UUIDs, as it does for a machine's first CUDA program.

    A confined candidate cannot be that one: it may start no program with privileges. Returns why the files are missing after
    that too, which only matters if a GPU is used; '' otherwise. Does nothing where no GPU is to be used, or all is there.
    """
    found, visible = listed(folder), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or (visible is not None and visible.strip() in ("", "-1")):
        return ""
    if os.path.exists(UVM) and not any("?" in gpu.uuid for gpu in found):
        return ""
    first = [sys.executable, "-c", "import torch; torch.cuda.init()"]
    try:
        said = subprocess.run(first, capture_output=True, text=True, timeout=WAKE_LIMIT_S, check=False).stderr
    except subprocess.TimeoutExpired:
        said = f"torch.cuda.init() took more than {WAKE_LIMIT_S:.0f} s"
    last = (said.strip().splitlines() or ["no reason was given"])[-1]
    return "" if os.path.exists(UVM) else f"there are GPUs but no {UVM}: {last}. Try `nvidia-modprobe -u -c 0` as root"


def assigned(visible: str | None, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; all of them when it is not set, none when it is empty.

    A slice of a GPU ("MIG-…") has no device file of its own that we know: then all files are given, and CUDA keeps to the
    slice. Raises FrozenEnvError for a name that is no GPU of this machine.
    """
    if visible is None or "MIG-" in visible:
        return gpus
    chosen: list[Gpu] = []
    for word in (word.strip() for word in visible.split(",")):
        if word in ("", "-1"):  # as CUDA reads it: nothing from here on
            break
        if word.isdigit():
            matches = gpus[int(word) : int(word) + 1]
        else:
            matches = [gpu for gpu in gpus if word.startswith("GPU-") and gpu.uuid.startswith(word)]
        if len(matches) != 1:
            raise FrozenEnvError(
                f"CUDA_VISIBLE_DEVICES names {word!r}, but this machine has {len(gpus)} GPUs; use a number below that or a UUID"
            )
        chosen += matches
    return chosen


def device_name(device: str) -> str:
    """What a candidate runs on: "cpu", or the name of its first GPU; '' where the driver does not list it."""
    if device != "cuda":
        return device
    chosen = assigned(os.environ.get("CUDA_VISIBLE_DEVICES"), listed())
    return chosen[0].name if chosen else ""


def environment(visible: str | None, gpus: list[Gpu]) -> dict[str, str]:
    """What the candidate's environment says of its GPUs; {} on a machine without any."""
    if visible is not None and "MIG-" in visible:
        return {"CUDA_VISIBLE_DEVICES": visible}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in assigned(visible, gpus))} if gpus else {}


def writable_paths(visible: str | None, gpus: list[Gpu]) -> list[str]:
    """Device files that it may use, and its threads' names, which CUDA sets at its start; [] without a GPU."""
    chosen = assigned(visible, gpus)
    common = [*COMMON_DEVICES, *sorted(map(str, CAPABILITIES.glob("*"))), f"/proc/{os.getpid()}/task"]
    wanted = [*(gpu.device for gpu in chosen), *common] if chosen else []
    return [path for path in wanted if os.path.exists(path)]


def readable_paths(visible: str | None, gpus: list[Gpu]) -> list[str]:
    """What CUDA reads at its start about the driver, the machine and these GPUs; [] without a GPU."""
    chosen = assigned(visible, gpus)
    own = [os.path.realpath(PCI / gpu.address) for gpu in chosen if gpu.address]  # not all lie on the first bus
    wanted = [*READABLE, *own, f"/proc/{os.getpid()}"] if chosen else []
    return [path for path in wanted if os.path.exists(path)]
