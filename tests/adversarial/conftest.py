"""Two hosts: one as a campaign has it, with small limits; one with every defence off, inside an outer limit."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frozen_env.contract import RunResult
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec
from tests.frozen_env.runtime.candidates import with_training

REPO = Path(__file__).resolve().parents[2]
# Scores an untrained model: what it gets depends on nothing but the environment and the seed.
NEXT_EXPERIMENT = with_training("env.start()\nenv.submit(build_model())")
ALLOWED_LEFTOVERS = {"candidate", "candidate/train.py", "log.txt", "submission", "submission/submission.safetensors"}


@pytest.fixture(scope="session")
def guarded_spec(quick_spec: EnvironmentSpec) -> EnvironmentSpec:
    """Small limits, so that an attack of a harmless size breaks them."""
    return dataclasses.replace(
        quick_spec,
        budget_s=1.0,
        grace_s=2.5,
        silence_s=0.9,
        score_limit_s=6.0,
        settling_s=0.7,
        startup_allowance_s=4.0,
        held_out_rows=24,
        probe_rows=16,
        memory_limit_mb=450,
        process_limit=4,
        scratch_limit_mb=16,
        submission_limit_mb=8,
        log_limit_kb=16,
    )


@pytest.fixture(scope="session")
def unguarded_spec(guarded_spec: EnvironmentSpec) -> EnvironmentSpec:
    return dataclasses.replace(
        guarded_spec,
        sandbox="off",
        probe_rows=0,
        silence_s=60.0,
        score_limit_s=20.0,
        settling_s=60.0,
        overrun_s=60.0,
        memory_limit_mb=2000,
        process_limit=16,
        scratch_limit_mb=256,
        submission_limit_mb=256,
        log_limit_kb=4096,
    )


@pytest.fixture(scope="session")
def guarded_host(guarded_spec: EnvironmentSpec, prepared_data: Path, tmp_path_factory) -> Iterator[Host]:
    with Host(guarded_spec, prepared_data, tmp_path_factory.mktemp("guarded") / "host.log") as host:
        host.wait_ready()
        yield host


@pytest.fixture(scope="session")
def unguarded_host(unguarded_spec: EnvironmentSpec, prepared_data: Path, tmp_path_factory) -> Iterator[Host]:
    """No sandbox, no probes, wide limits. What attacks do here is small, and an outer limit holds should one not be."""
    with Host(unguarded_spec, prepared_data, tmp_path_factory.mktemp("unguarded") / "host.log") as host:
        host.wait_ready()
        zygote = host._own_pids[1]
        resource.prlimit(zygote, resource.RLIMIT_FSIZE, (512 << 20, 512 << 20))
        resource.prlimit(zygote, resource.RLIMIT_DATA, (4 << 30, 4 << 30))
        yield host


def fill_in(source: str, data: Path) -> str:
    return source.replace("DATA", str(data)).replace("REPO", str(REPO))


@pytest.fixture
def guarded(
    guarded_host: Host, prepared_data: Path, tmp_path: Path, reference_score: float
) -> Callable[..., RunResult]:
    """Run a candidate with every defence on; then see that it left nothing and that the next experiment is as ever."""

    def run(source: str, **options) -> RunResult:
        host_pids = list(guarded_host._own_pids)
        before = surroundings(prepared_data)
        result = guarded_host.run(fill_in(source, prepared_data), seed=1, place=tmp_path / "run", **options)
        assert guarded_host.running() == [], "a process outlived its run"
        assert guarded_host._own_pids == host_pids, "the host had to be started anew"
        left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
        assert left <= ALLOWED_LEFTOVERS, "a file was left behind"
        assert surroundings(prepared_data) == before, "something outside its folder was changed"
        assert "\n" not in result.reason
        assert len(result.reason) <= 300
        assert next_score(guarded_host, tmp_path / "next") == reference_score, "the next experiment was not as ever"
        return result

    return run


@pytest.fixture
def unguarded(unguarded_host: Host, prepared_data: Path, tmp_path: Path) -> Callable[..., RunResult]:
    def run(source: str, **options) -> RunResult:
        return unguarded_host.run(fill_in(source, prepared_data), seed=1, place=tmp_path / "unguarded", **options)

    return run


@pytest.fixture(scope="session")
def reference_score(guarded_host: Host, tmp_path_factory) -> float:
    return next_score(guarded_host, tmp_path_factory.mktemp("reference") / "run")


def next_score(host: Host, place: Path) -> float:
    result = host.run(NEXT_EXPERIMENT, seed=7, place=place)
    assert result.score is not None, result.reason
    return result.score.value


def surroundings(data: Path) -> dict[str, tuple[int, int]]:
    """Names, modes and times of what a candidate might leave its mark on."""
    folders = [
        REPO,
        REPO / "frozen_env",
        REPO / "target",
        data,
        *(path for path in data.glob("problem/*") if path.is_dir()),
        Path("/dev/shm"),
    ]
    paths = [path for folder in folders for path in folder.iterdir() if path.name != "__pycache__"]
    found = {}
    for path in paths:
        info = os.lstat(path)
        found[str(path)] = (info.st_mode, info.st_mtime_ns if path.is_file() else 0)
    return found
