"""What a candidate on a GPU gets beyond others, as far as a machine without one can tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from frozen_env.contract import FrozenEnvError
from frozen_env.runtime import gpu_lock, gpus, sandbox, toolchain
from frozen_env.runtime.gpus import Gpu
from frozen_env.runtime.host import needs_gpu

TWO = [Gpu("GPU-aaaa-1", "/dev/nvidia1"), Gpu("GPU-bbbb-2", "/dev/nvidia0")]


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, ["/dev/nvidia1", "/dev/nvidia0"]),
        ("0", ["/dev/nvidia1"]),
        ("1", ["/dev/nvidia0"]),
        ("1,0", ["/dev/nvidia0", "/dev/nvidia1"]),
        ("GPU-bbbb-2", ["/dev/nvidia0"]),
        ("GPU-aaaa", ["/dev/nvidia1"]),
        ("", []),
        ("-1,0", []),
        ("MIG-abc", ["/dev/nvidia1", "/dev/nvidia0"]),
    ],
)
def test_a_candidate_gets_the_device_files_of_its_gpus_alone(visible: str | None, devices: list[str]) -> None:
    assert [gpu.device for gpu in gpus.assigned(visible, TWO)] == devices


@pytest.mark.parametrize("visible", ["2", "GPU-cccc", "GPU-", "first"])
def test_a_gpu_that_is_not_there_is_an_error_with_its_remedy(visible: str) -> None:
    with pytest.raises(FrozenEnvError, match="this machine has 2 GPUs"):
        gpus.assigned(visible, TWO)


def test_gpus_are_read_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    for address, uuid, minor in [("0000:3b:00.0", "GPU-b", 0), ("0000:1a:00.0", "GPU-a", 1)]:
        (tmp_path / address).mkdir()
        (tmp_path / address / "information").write_text(
            f"Model: \t\t NVIDIA H100\nGPU UUID: \t {uuid}\nBus Location: \t {address}\nDevice Minor: \t {minor}\n"
        )
    name = "NVIDIA H100"
    assert gpus.listed(tmp_path) == [
        Gpu("GPU-a", "/dev/nvidia1", name, "0000:1a:00.0"),
        Gpu("GPU-b", "/dev/nvidia0", name, "0000:3b:00.0"),
    ]
    assert gpus.environment("1", gpus.listed(tmp_path)) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    assert gpus.environment("1", []) == {}


def test_a_cpu_is_called_so_and_a_gpu_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpus, "listed", lambda: [Gpu("GPU-a", "/dev/nvidia1", "NVIDIA H100"), Gpu("GPU-b", "/dev/nvidia0", "NVIDIA L4")]
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.device_name("cpu") == "cpu"
    assert gpus.device_name("cuda") == "NVIDIA L4"
    monkeypatch.setattr(gpus, "listed", list)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.device_name("cuda") == ""


def test_what_cuda_reads_of_its_own_gpu_is_readable_whichever_bus_it_lies_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PCI", tmp_path / "bus")
    (tmp_path / "bus").mkdir()
    for address in ("0000:1a:00.0", "0000:3b:00.0"):
        (tmp_path / "pci0000:15" / address).mkdir(parents=True)
        (tmp_path / "bus" / address).symlink_to(tmp_path / "pci0000:15" / address)
    two = [Gpu("GPU-a", "/dev/nvidia0", "", "0000:1a:00.0"), Gpu("GPU-b", "/dev/nvidia1", "", "0000:3b:00.0")]
    readable = gpus.readable_paths("GPU-b", two)
    assert str(tmp_path / "pci0000:15" / "0000:3b:00.0") in readable
    assert str(tmp_path / "pci0000:15" / "0000:1a:00.0") not in readable
    assert "/proc/devices" in readable
    assert gpus.readable_paths(None, []) == []


# --- a machine's first CUDA program -------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with one GPU whose driver has made no device file yet; `first` says what its first CUDA program does."""
    folder, uvm = tmp_path / "gpus", tmp_path / "nvidia-uvm"
    (folder / "0000:1a:00.0").mkdir(parents=True)
    (folder / "0000:1a:00.0" / "information").write_text("GPU UUID: \t GPU-a\nDevice Minor: \t 0\n")
    world = SimpleNamespace(folder=folder, uvm=uvm, ran=[], first=lambda: "")

    def run(command: list[str], **_: object) -> SimpleNamespace:
        world.ran.append(command)
        return SimpleNamespace(stderr=world.first())

    monkeypatch.setattr(gpus, "UVM", str(uvm))
    monkeypatch.setattr(gpus.subprocess, "run", run)
    return world


def test_the_first_cuda_program_of_a_machine_is_none_of_the_candidates(machine: SimpleNamespace) -> None:
    machine.first = lambda: machine.uvm.touch() or ""
    assert gpus.wake(machine.folder) == ""
    assert gpus.wake(machine.folder) == ""
    assert [command[-1] for command in machine.ran] == ["import torch; torch.cuda.init()"]


def test_a_uuid_that_the_driver_does_not_know_yet_takes_one_too(machine: SimpleNamespace) -> None:
    machine.uvm.write_text("")
    (machine.folder / "0000:1a:00.0" / "information").write_text("GPU UUID: \t GPU-????????\nDevice Minor: \t 0\n")
    gpus.wake(machine.folder)
    assert len(machine.ran) == 1


def test_device_files_that_stay_away_are_told_with_the_reason_and_the_remedy(machine: SimpleNamespace) -> None:
    machine.first = lambda: "Traceback\nRuntimeError: no driver\n"
    told = gpus.wake(machine.folder)
    assert "RuntimeError: no driver. Try `nvidia-modprobe" in told


@pytest.mark.parametrize(
    ("asked", "found", "torch", "needs"),
    [
        ("cuda", "cuda", True, True),
        ("cuda", "cuda", False, True),
        ("auto", "cuda", True, True),
        ("auto", "cpu", True, False),  # torch for the CPU, or a container that sees the driver's list alone
        ("auto", "cuda", False, False),
        ("cpu", "cpu", True, False),
    ],
)
def test_missing_device_files_matter_to_those_who_use_a_gpu(asked: str, found: str, torch: bool, needs: bool) -> None:
    assert needs_gpu(asked, found, torch) == needs


@pytest.mark.parametrize("visible", [None, "", "-1"])
def test_without_a_gpu_to_use_nothing_is_woken(
    machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is None:
        assert gpus.wake(tmp_path / "none") == ""
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpus.wake(machine.folder) == ""
    assert machine.ran == []


def test_a_run_by_hand_holds_one_gpu_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(gpu_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    with gpu_lock.held_for("cuda") as first, gpu_lock.held_for("auto") as second:
        assert [first.name, second.name] == ["GPU-a", "GPU-b"]
    with gpu_lock.held_for("cuda") as again, gpu_lock.held_for("cpu") as none:
        assert (again.name, none) == ("GPU-a", None)


# --- the confinement ----------------------------------------------------------------------------------------------------

CALLS = r"""
import ctypes, errno, os, socket, sys
from frozen_env.runtime import seccomp
box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
box.bind("box")
seccomp.install(seccomp.deny_program(sys.argv[1]))
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.send(b"to its other end")
assert other.recv(99) == b"to its other end"
try:
    one.sendto(b"to whom it may concern", "box")
    print("sendto done")
except PermissionError:
    print("sendto EPERM")
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    found = libc.syscall(seccomp.number(name), *arguments)
    print(name, arguments[0] if name == "socket" else "", "done" if found >= 0 else errno.errorcode[ctypes.get_errno()])
    return found
call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)
call("socket", socket.AF_NETLINK, socket.SOCK_SEQPACKET, 0)
call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0)
call("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0)
name = ctypes.create_string_buffer(b"\x01\x00\x00cuda-uvmfd-%d" % os.getpid())
fd = call("socket", socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC, 0)
call("bind", fd, name, len(name) - 1)
call("listen", fd, 16)
call("accept", fd, None, None)
call("accept4", fd, None, None, 0)
call("connect", fd, name, len(name) - 1)
"""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_on_a_gpu_may_make_the_socket_that_cuda_starts_with_and_no_other(device: str, tmp_path: Path) -> None:
    root = Path(gpus.__file__).resolve().parents[2]
    command, variables = [sys.executable, "-c", CALLS, device], os.environ | {"PYTHONPATH": str(root)}
    said = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in said.splitlines()]
    refused = ["EPERM", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT"]
    if device == "cuda":
        expected = [*refused, "done", "done", "done", "EPERM", "EPERM", "EPERM"]
    else:
        expected = [*refused, "EAFNOSUPPORT", "EPERM", "EPERM", "EPERM", "EPERM", "EPERM"]
    assert [words[-1] for words in found] == expected


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
@pytest.mark.parametrize("part", ["cc1", "collect2", "as", "ld"])
def test_a_candidate_on_a_gpu_reaches_all_that_the_compiler_runs(part: str) -> None:
    said = subprocess.run(["gcc", f"-print-prog-name={part}"], capture_output=True, text=True, check=True).stdout
    program = os.path.realpath(shutil.which(said.strip()) or said.strip())
    if not os.path.exists(program):
        pytest.skip(f"gcc names no {part}")
    allowed = [*sandbox.readable_paths(), *toolchain.readable_paths("cuda")]
    assert any(program == path or program.startswith(path + "/") for path in map(os.path.realpath, allowed))
