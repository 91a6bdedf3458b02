"""The runtime's smaller rules, each by itself: GPUs, lateness, capabilities, seccomp programs, refusal of old kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from frozen_env.contract import FrozenEnvError, SandboxUnavailable
from frozen_env.runtime import bubblewrap, gpus, sandbox, seccomp
from frozen_env.runtime.gpus import Gpu
from frozen_env.runtime.launch import Order
from frozen_env.runtime.submission import Overrun
from frozen_env.runtime.words import out_of_memory
from frozen_env.spec import EnvironmentSpec

# --- GPUs ---------------------------------------------------------------------------------------------------------------
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
    assert gpus.listed(tmp_path) == [Gpu("GPU-a", "/dev/nvidia1", name), Gpu("GPU-b", "/dev/nvidia0", name)]
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


@pytest.mark.parametrize(
    ("log", "is_memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity", True),
        ("RuntimeError: CUDA error: out of memory", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("MemoryError", True),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied", False),
        ("", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(log: str, is_memory: bool) -> None:
    assert out_of_memory(log) == is_memory


# --- lateness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps_s", "overrun_s", "size_mb", "is_refused"),
    [
        ([0.1, 0.2, 0.3], 0.9, 0, False),
        ([0.1, 0.2, 0.3], 1.2, 0, True),
        ([1.0, 4.0, 5.0], 3.9, 0, False),  # steps of three seconds: one more is a step, not training on
        ([0.1, 0.2], 2.9, 200, False),  # two seconds to save 200 MB
        ([0.1, 0.2], 2.9, 100, True),
        ([1.0, 9.0], 5.1, 0, True),  # but never longer than the grace
        ([], 0.5, 0, False),
    ],
)
def test_what_comes_after_the_end_is_a_step_and_saving_or_it_is_training(
    quick_spec: EnvironmentSpec, steps_s: list[float], overrun_s: float, size_mb: int, is_refused: bool
) -> None:
    overrun = Overrun(replace(quick_spec, grace_s=5.0, overrun_s=1.0))
    for at_s in steps_s:
        assert overrun.sign("request", at_s, budget_end_s=10.0) == ""
    assert bool(overrun.too_late(overrun_s, size_mb * 10**6)) is is_refused


def test_a_sign_of_training_long_after_the_end_is_too_late(quick_spec: EnvironmentSpec) -> None:
    overrun = Overrun(replace(quick_spec, grace_s=5.0, overrun_s=1.0))
    assert overrun.sign("request", 9.9, 10.0) == ""
    assert overrun.sign("report", 10.5, 10.0) == ""
    assert overrun.sign("report", 11.5, 10.0) == "still training 1.5 s after the end of the budget"


# --- confinement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_a_filter_lands_inside_it(machine: str, monkeypatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    for program in (seccomp.deny_program(), seccomp.process_program()):
        for at, (operation, if_true, if_false, _) in enumerate(program):
            if operation in (seccomp.JUMP_EQUAL, seccomp.JUMP_GREATER, seccomp.JUMP_ANY_BIT):
                assert at + 1 + max(if_true, if_false) < len(program)
        assert program[-1] == (seccomp.RETURN, 0, 0, seccomp.ALLOW)
        assert len(program) < 4096, "the kernel takes no longer one"


def test_every_call_that_is_denied_is_known_here() -> None:
    unknown = [name for name in seccomp.DENIED if seccomp.number(name) is None]
    assert unknown == []


def test_a_machine_without_a_list_of_calls_is_refused_with_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match=r"environment\.sandbox=off"):
        sandbox.describe("on")


def test_an_old_kernel_takes_bubblewrap_or_is_refused_with_the_remedy(monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "_landlock", lambda: (3, 6))
    monkeypatch.setattr(bubblewrap, "works", lambda: True)
    assert sandbox.describe("on") == "bubblewrap+seccomp"
    monkeypatch.setattr(bubblewrap, "works", lambda: False)
    with pytest.raises(SandboxUnavailable, match=r"Linux 6\.12 or newer.*install bubblewrap.*environment\.sandbox=off"):
        sandbox.describe("on")
    assert sandbox.describe("off") == "OFF"


def test_bubblewrap_is_shown_no_data_and_no_network(quick_spec: EnvironmentSpec, prepared_data: Path) -> None:
    order = Order("candidate", "/run/candidate/train.py", "/run/scratch", ["/run/candidate"], 1, host_pid=1)
    words = bubblewrap.command(order, quick_spec)
    assert "--unshare-all" in words
    assert "--die-with-parent" in words
    shown = [words[i + 1] for i, word in enumerate(words) if word.startswith("--ro-bind") or word == "--bind"]
    assert shown.count("/run/scratch") == 1
    assert not any(prepared_data.is_relative_to(path) for path in shown)


def test_a_sandbox_is_on_or_off(quick_spec: EnvironmentSpec) -> None:
    with pytest.raises(ValueError, match="'on' or 'off', got False"):
        replace(quick_spec, sandbox=False)  # type: ignore[arg-type]
