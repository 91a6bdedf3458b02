"""Where Landlock is too old, bubblewrap keeps the same promises. Runs where the program is installed."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from frozen_env.contract import Cause, Ending
from frozen_env.runtime import bubblewrap, supervisor
from frozen_env.runtime.supervisor import Host
from tests.adversarial.attacks import BOMBS, NETWORK, OTHERS, READING, WRITING, Attack
from tests.adversarial.conftest import fill_in
from tests.frozen_env.runtime.candidates import GOOD, with_training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not bubblewrap.works(), reason="bubblewrap (the program bwrap) is not installed, or may not run"
    ),
]
# The host's entry point on a kernel whose Landlock is too old.
OLD_KERNEL = (
    "import sys\nfrom frozen_env.runtime import sandbox\nsandbox._landlock = lambda: (3, 6)\n"
    "from frozen_env.node import guarded, main\nsys.exit(guarded(main))"
)
BY_NAME = {attack.name: attack for attack in (*READING, *WRITING, *NETWORK, *OTHERS, *BOMBS)}
CHOSEN = [
    "reads a guessed cache",
    "reads the list of accounts",
    "overwrites frozen_env on disk",
    "leaves a file in shared memory",
    "opens a TCP socket",
    "opens an abstract socket",
    "fork bomb",
    "disk bomb",
]


@pytest.fixture(scope="module")
def host(guarded_spec, prepared_data, tmp_path_factory):
    start = subprocess.Popen
    patched = pytest.MonkeyPatch()
    patched.setattr(
        supervisor.subprocess, "Popen", lambda words, **more: start([words[0], "-c", OLD_KERNEL, *words[3:]], **more)
    )
    spec = dataclasses.replace(guarded_spec, startup_allowance_s=120.0)
    with Host(spec, prepared_data, tmp_path_factory.mktemp("old") / "host.log") as host:
        host.wait_ready()
        yield host
    patched.undo()


def test_a_candidate_trains_and_is_scored(host, tmp_path) -> None:
    result = host.run(GOOD, seed=1, place=tmp_path)
    assert result.ending is Ending.FINISHED, f"{result.reason}\n{result.log_tail}"
    assert result.sandbox == "bubblewrap+seccomp"
    assert host.running() == []


@pytest.mark.parametrize("attack", [BY_NAME[name] for name in CHOSEN], ids=str)
def test_attacks_fail_there_too(attack: Attack, host, prepared_data, tmp_path) -> None:
    result = host.run(fill_in(attack.source, prepared_data), seed=1, place=tmp_path)
    assert "SUCCEEDED" not in result.reason
    assert (result.ending, result.score) == (Ending.CRASHED, None), result.reason
    assert host.running() == []


def test_sigterm_reaches_the_candidate_inside(host, tmp_path) -> None:
    waits = """
from frozen_env.runtime import client
env.start()
while not client._run.time_is_up: env.report(1, 1.0)
env.submit(build_model())
"""
    result = host.run(with_training(waits), seed=1, place=tmp_path)
    assert (result.ending, result.cause) == (Ending.FINISHED, Cause.NONE), result.reason
