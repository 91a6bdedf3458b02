"""No process survives, whoever is killed: the candidate, the host, the guard's caller. And an abort does not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frozen_env.contract import Cause, Ending, HostError
from frozen_env.runtime import processes
from frozen_env.runtime.supervisor import Host
from tests.adversarial.models import ModelAttack
from tests.frozen_env.runtime.candidates import GOOD, with_training

REPO = Path(__file__).resolve().parents[2]
LEAVES_DAEMON = with_training(
    """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
time.sleep(0.2)
env.start()
while True: env.report(1, 1.0)
"""
)
SLOW_TO_ANSWER = ModelAttack("", "import time\ntime.sleep(60)").source


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.02)


def gone(pids: list[int]) -> bool:
    return not any(processes.name(pid) for pid in pids)


@pytest.fixture
def host(guarded_spec, prepared_data, tmp_path):
    with Host(guarded_spec, prepared_data, tmp_path / "host.log") as host:
        host.wait_ready()
        yield host


def test_nothing_survives_the_kill_of_the_host(host: Host, tmp_path: Path) -> None:
    everything: list[int] = []

    def kill_host(event) -> None:
        if event["event"] == "started":
            wait_until(lambda: len(host.running()) >= 2)  # the candidate and its daemon
            everything.extend(processes.descendants(host._process.pid))
            os.kill(host._own_pids[0], signal.SIGKILL)

    with pytest.raises(HostError):
        host.run(LEAVES_DAEMON, seed=1, place=tmp_path, on_event=kill_host)
    assert len(everything) >= 4, "host, zygote, candidate, daemon"
    wait_until(lambda: gone(everything))


def test_nothing_survives_the_kill_of_the_campaign(prepared_data: Path, guarded_spec, tmp_path: Path) -> None:
    campaign = textwrap.dedent(f"""
        import json, sys
        from pathlib import Path
        from frozen_env.runtime import processes
        from frozen_env.runtime.supervisor import Host
        from frozen_env.spec import EnvironmentSpec
        host = Host(EnvironmentSpec.from_json(json.loads(sys.argv[1])), Path({str(prepared_data)!r}))
        host.start()
        host.wait_ready()
        def tell(event):
            if event["event"] == "report":
                print([host._process.pid, *processes.descendants(host._process.pid)], flush=True)
        host.run(open(sys.argv[2]).read(), seed=1, place=Path(sys.argv[3]), on_event=tell)
    """)
    source = tmp_path / "train.py"
    source.write_text(LEAVES_DAEMON)
    import json

    command = [sys.executable, "-c", campaign, json.dumps(guarded_spec.to_json()), str(source), str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(word) for word in process.stdout.readline().strip("[]\n").split(",")]
        process.kill()
    assert len(pids) >= 5, "guard, host, zygote, candidate, daemon"
    wait_until(lambda: gone(pids))


def test_a_host_that_hangs_is_ended_when_its_caller_has_gone(host: Host, monkeypatch) -> None:
    guard, (host_pid, zygote) = host._process, host._own_pids
    os.kill(host_pid, signal.SIGSTOP)
    host._process = None
    guard.stdin.close()
    wait_until(lambda: gone([host_pid, zygote]), limit_s=40)
    guard.stdout.close()
    assert guard.wait(timeout=5) == signal.SIGKILL


def test_an_abort_during_scoring_does_not_wait_for_the_model(guarded_host: Host, tmp_path: Path) -> None:
    aborted_s: list[float] = []

    def abort(event) -> None:
        if event["event"] == "scoring":
            aborted_s.append(time.monotonic())
            guarded_host.abort()

    result = guarded_host.run(SLOW_TO_ANSWER, seed=1, place=tmp_path, on_event=abort)
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.ABORTED)
    assert time.monotonic() - aborted_s[0] < guarded_host.spec.score_limit_s / 2
    assert guarded_host.running() == []


def test_without_a_guard_a_daemon_outlives_the_kill_of_its_host(tmp_path: Path) -> None:
    """What the guard is for: the kernel's promise to end children with their parent does not reach grandchildren."""
    code = textwrap.dedent("""
        import os, time
        from frozen_env.runtime import processes
        top = os.getpid()
        if os.fork() == 0:
            processes.die_with_parent(top)
            if os.fork() == 0:
                os.setsid()
                time.sleep(30)
                os._exit(0)
            time.sleep(60)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPO) as process:
        wait_until(lambda: len(processes.descendants(process.pid)) == 2)
        child, grandchild = processes.descendants(process.pid)
        process.kill()
        process.wait()
    wait_until(lambda: gone([child]))
    try:
        assert processes.name(grandchild)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_process_that_ignores_sigterm_outlives_it() -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.kill()


def test_the_next_experiment_trains_as_ever_after_a_daemon(guarded) -> None:
    guarded(LEAVES_DAEMON)
    assert guarded(GOOD).ending is Ending.FINISHED
