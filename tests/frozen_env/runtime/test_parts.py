"""The runtime's smaller rules, each by itself: last words, lateness, capabilities, seccomp programs, refusal of old kernels."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from frozen_env.contract import SandboxUnavailable
from frozen_env.runtime import bubblewrap, processes, sandbox, seccomp
from frozen_env.runtime.launch import Order
from frozen_env.runtime.submission import Overrun
from frozen_env.runtime.supervisor import Host
from frozen_env.runtime.words import out_of_memory
from frozen_env.spec import EnvironmentSpec

# --- last words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "is_memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity", True),
        ("RuntimeError: CUDA error: out of memory", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("MemoryError", True),
        (
            "RuntimeError: NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp",
            True,
        ),
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied", False),
        ("", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(log: str, is_memory: bool) -> None:
    assert out_of_memory(log) == is_memory


EVEN = [k / 100 for k in range(100)]

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
        ([0.1, 0.2, 0.3, 0.4, 4.0, 4.1], 1.2, 0, True),  # a pause that was made once is no step
        ([*EVEN, 4.1, 5.1, 6.1, 7.1, 8.1, 9.1, 9.2, 9.3], 1.9, 0, True),  # nor are a few
        ([*EVEN, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 1.9, 0, False),  # but steps may grow
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
    for program in (seccomp.deny_program(), seccomp.deny_program("cuda"), seccomp.process_program()):
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


def test_a_kernel_that_hides_a_processes_children_is_refused_with_the_remedy(quick_spec, prepared_data) -> None:
    class BlindHost(Host):
        module = "tests.frozen_env.runtime.blind_node"

    with (
        BlindHost(quick_spec, prepared_data) as host,
        pytest.raises(SandboxUnavailable, match="CONFIG_PROC_CHILDREN=y"),
    ):
        host.wait_ready()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
def test_bubblewrap_has_the_compilers_under_the_names_that_they_are_called_by(quick_spec: EnvironmentSpec) -> None:
    order = Order("candidate", "", "/scratch", [], 0, 0)
    words = bubblewrap.command(order, replace(quick_spec, device="cuda"))
    bound = {words[i + 2] for i, word in enumerate(words) if word == "--ro-bind-try"}
    assert {shutil.which("gcc"), shutil.which("as"), shutil.which("ld"), "/bin/sh"} <= bound
    assert "/bin/sh" not in bubblewrap.command(order, quick_spec)


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


# --- memory -------------------------------------------------------------------------------------------------------------


def test_a_process_that_cannot_be_looked_into_counts_as_it_does_at_a_glance(monkeypatch) -> None:
    """As any does that has become a program which its user may run and not read, where the host is not root."""
    me = [os.getpid()]
    read = Path.read_text

    def refused(path: Path, *arguments, **options) -> str:
        if path.name == "smaps_rollup":
            raise PermissionError(path)
        return read(path, *arguments, **options)

    assert 0 < processes.exact_memory_mb(me) <= processes.memory_mb(me) + 1
    monkeypatch.setattr(Path, "read_text", refused)
    assert processes.exact_memory_mb(me) == pytest.approx(processes.memory_mb(me), rel=0.05)
    assert processes.exact_memory_mb([2**22 + 1]) == 0, "who has gone uses nothing"
