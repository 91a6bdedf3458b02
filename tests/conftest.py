"""Shared fixtures. Thread counts are fixed before torch is imported: busy cores make it ten times slower."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import flows  # noqa: F401  sets Prefect's surroundings before anything imports it
from bench.cluster import Cluster, cluster
from frozen_env.contract import DataMissing
from frozen_env.fetch import data_dir
from frozen_env.problem.data import prepare
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, read_preset

# Not in the checkout: tests of the sandbox, in another process, watch it for what a candidate may leave.
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"hypothesis-{os.getuid()}")
# The same examples in every run: a property that fails by luck in one place cannot be looked into in another.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def quick_spec() -> EnvironmentSpec:
    """The embedded environment with a two-second budget."""
    short = {
        "budget_s": 2.0,
        "check_every_s": 0.2,
        "grace_s": 1.0,
        "silence_s": 1.2,
        "startup_allowance_s": 3.0,
        "score_limit_s": 20.0,
        "memory_limit_mb": 700,
        "held_out_rows": 32,
        "probe_rows": 8,
        "threads": 1,
    }
    return EnvironmentSpec.from_json(read_preset("embedded")["environment"] | short)


@pytest.fixture(scope="session")
def prepared_data(quick_spec: EnvironmentSpec) -> Path:
    """The data folder with the embedded text in it; `make test` prepares it, a bare pytest does so here."""
    try:
        prepare(quick_spec, data_dir())
    except DataMissing as error:
        pytest.fail(f"the tests need the embedded text: {error}")
    return data_dir()


@pytest.fixture(scope="session")
def host(quick_spec: EnvironmentSpec, prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One warm host for all tests that run candidates with the quick environment."""
    with Host(quick_spec, prepared_data, tmp_path_factory.mktemp("host") / "host.log") as host:
        host.wait_ready()
        yield host


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Prefect server, a process of its own: starting one takes 15 seconds, so the tests share it."""
    with cluster(tmp_path_factory.mktemp("server")) as one:
        yield one
