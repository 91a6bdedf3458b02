"""What a scoring worker may take: enough for any model that was trained at its pace, too little to go on learning."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from frozen_env.runtime import effort as effort_module
from frozen_env.runtime import processes
from frozen_env.runtime.effort import GPU_SETTLING_S, Allowance, Effort
from frozen_env.runtime.limits import LimitBroken, Limits
from frozen_env.runtime.processes import ProcessorTime
from frozen_env.spec import EnvironmentSpec, read_preset

BURNS = "import time\nwhile time.process_time() < 0.3: pass\n"
THEN_WAITS = "print('done', flush=True)\ninput()"


@pytest.fixture
def spec() -> EnvironmentSpec:
    return EnvironmentSpec.from_json(read_preset("embedded")["environment"])


@pytest.mark.parametrize(
    ("tokens_trained", "least_s", "most_s"),
    [
        (400_000, 0.5, 1.0),  # the seed's pace: 2,048 tokens were trained in 0.2 s of two cores
        (40_000, 2.0, 2.1),  # a model ten times as heavy: its forward pass alone may take 0.7 s
        (1_000, 2.0, 2.1),  # who asks for next to nothing has no more time for it
        (0, 2.0, 2.1),
    ],
)
def test_a_batch_may_take_what_training_took_and_a_twentieth_of_the_budget_at_most(
    spec: EnvironmentSpec, tokens_trained: int, least_s: float, most_s: float
) -> None:
    found_s = Allowance(spec, 0, 20.0, tokens_trained).answering_s(2048, 4 * 2048 * 2048)
    assert least_s < found_s < most_s


def test_a_large_model_may_load_longer_and_on_a_gpu_cuda_may_start(spec: EnvironmentSpec) -> None:
    small, large = Allowance(spec, 10**6, 20.0, 10**5), Allowance(spec, 4 * 10**8, 20.0, 10**5)
    assert small.loading_s == pytest.approx(spec.settling_s, abs=0.01)
    assert large.loading_s == pytest.approx(spec.settling_s + 2)
    assert replace(small, spec=replace(spec, device="cuda")).loading_s > GPU_SETTLING_S


def test_processor_time_of_a_whole_tree_counts_and_waiting_does_not(spec: EnvironmentSpec) -> None:
    forks = f"import os\nif os.fork() == 0:\n    {BURNS.strip().replace(chr(10), chr(10) + '    ')}\n    os._exit(0)\nos.wait()\n"
    command = [sys.executable, "-c", BURNS + forks + THEN_WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        effort = Effort(spec)
        effort.begin([process.pid], allowed_s=0.45)
        assert process.stdout.readline() == b"done\n"
        assert effort.is_too_much([process.pid], 0)
        spent_s = effort.spent_s
        assert not replace(effort, allowed_s=spent_s + 0.1).is_too_much([process.pid], 0), "it only waits"
        assert effort.is_too_much([], 0), "and what it took is not forgotten when it has gone"
        process.kill()


def test_who_keeps_more_cores_busy_than_its_threads_ends(spec: EnvironmentSpec, tmp_path) -> None:
    wait = "import os\nprint('here', flush=True)\ninput()\n"
    command = [sys.executable, "-c", wait + BURNS.replace("0.3", "1.65") + THEN_WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        limits = Limits(replace(spec, threads=1), os.getpid(), 0, tmp_path)
        limits.pids = lambda: [process.pid]
        assert process.stdout.readline() == b"here\n"
        limits.cores(training_s=0.1)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        limits.cores(training_s=1.5)  # a core for that long is what it was given
        with pytest.raises(LimitBroken, match=r"kept 5\.\d cores busy, environment\.threads is 1"):
            limits.cores(training_s=0.3)
        process.kill()


def test_who_comes_and_goes_unseen_counts_as_if_it_had_worked() -> None:
    """A parent that ignores the end of its children is not told what they took."""
    me, taken = os.getpid(), ProcessorTime(unseen_s=5.0)
    before_s = taken.look([me], admitted=3)
    assert taken.look([me], admitted=3) == pytest.approx(before_s, abs=1)
    assert taken.look([me], admitted=5) == pytest.approx(before_s + 10, abs=1)
    with subprocess.Popen([sys.executable, "-c", THEN_WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"done\n"
        assert taken.look([me, process.pid], admitted=5) == pytest.approx(before_s + 5, abs=1), "one of them is there"
        process.kill()


def test_on_a_gpu_time_goes_by_while_it_answers_and_not_while_it_is_measured(spec, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(effort_module.time, "monotonic", lambda: now[0])
    effort = Effort(replace(spec, device="cuda"))
    effort.begin([], allowed_s=3.0)
    effort.pause()
    now[0] = 100.0
    effort.resume(more_s=1.0)
    now[0] = 103.9
    assert not effort.is_too_much([], 0)
    effort.pause()
    now[0] = 200.0
    effort.resume(more_s=0.0)
    now[0] = 200.2
    assert effort.is_too_much([], 0)


def test_processor_time_is_told_by_process_and_start() -> None:
    (used_s,) = processes.processor_s([os.getpid()]).values()
    assert used_s == pytest.approx(sum(os.times()[:4]), abs=0.1)
    assert processes.processor_s([2**22 + 1]) == {}
