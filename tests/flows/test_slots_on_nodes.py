"""A node's slot: never fooled by a dead GPU or a full disk, and a crash is told only when it is the candidate's own."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from arl_core.config import load_config
from flows import blame
from flows import experiment as node
from frozen_env.contract import Cause, Ending, HostError, RunResult
from frozen_env.runtime import gpu_lock


class Node:
    """The flow of a node around a made-up host, without Prefect: `delivered` is what would reach the campaign."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delivered, self.hosts = [], []
        self.present, self.free_mb, self.fails = ["a"], 10_000.0, ""
        self.answer = RunResult(Ending.FINISHED)
        self.meanwhile = lambda: None  # what happens to the node while the candidate runs
        monkeypatch.setattr(gpu_lock, "visible", lambda: list(self.present))
        monkeypatch.setattr(blame, "gpu_fails", lambda _name: self.fails)
        monkeypatch.setattr(blame.shutil, "disk_usage", lambda _: SimpleNamespace(free=self.free_mb * 2**20))
        heart = SimpleNamespace(event=print, deliver=self.delivered.append)
        monkeypatch.setattr(node, "Heartbeat", lambda: contextlib.nullcontext(heart))
        monkeypatch.setattr(node, "Host", self.host)
        monkeypatch.setattr(node, "train", self.train)

    def host(self, _spec, _data, _stderr, gpu):
        self.hosts.append(gpu.name if gpu else None)
        return contextlib.nullcontext(SimpleNamespace(wait_ready=lambda: None, environment_digest="digest"))

    def train(self, *_):
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def run(self, device: str = "cuda") -> None:
        environment = load_config("embedded", {"environment.device": device}).environment
        node.experiment.fn("x", environment.to_json(), "digest")


CRASH = RunResult(Ending.CRASHED, Cause.EXCEPTION)


@pytest.fixture
def a_node(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    return Node(monkeypatch)


def test_a_node_delivers_a_crash_that_is_the_candidates_own(a_node):
    a_node.answer = CRASH
    a_node.run()
    assert a_node.hosts == ["a"]
    assert a_node.delivered == [CRASH]


def test_a_node_whose_gpu_vanished_delivers_no_crash(a_node):
    def vanish() -> None:
        a_node.present.clear()
        a_node.fails = "failed a small computation of ours"

    a_node.answer, a_node.meanwhile = CRASH, vanish
    with pytest.raises(HostError, match="GPU a failed a small computation of ours, after the candidate crashed"):
        a_node.run()
    with pytest.raises(HostError, match="no GPU answers"):  # and the next candidate does not even begin
        a_node.run()
    assert a_node.hosts == ["a"]
    assert a_node.delivered == []


def test_a_node_without_a_gpu_runs_who_needs_none(a_node):
    a_node.present.clear()
    a_node.run("cpu")
    a_node.run("auto")
    assert a_node.hosts == [None, None]


def test_a_node_whose_disk_is_full_refuses_before_the_run_and_after_a_crash(a_node):
    a_node.answer, a_node.meanwhile = CRASH, lambda: setattr(a_node, "free_mb", 100.0)
    with pytest.raises(HostError, match=r"only 100 MiB free .*after the candidate crashed"):
        a_node.run()
    with pytest.raises(HostError, match=r"only 100 MiB free .*make room on this node"):
        a_node.run()
    assert a_node.delivered == []


def test_a_host_that_died_under_a_candidate_is_told_from_a_node_that_lacks_something(a_node):
    a_node.answer = HostError("the host process ended (exit code -9)")
    with pytest.raises(HostError, match=f"^{node.HOST_DIED}: the host process ended"):
        a_node.run()
    a_node.meanwhile = lambda: setattr(a_node, "free_mb", 100.0)
    with pytest.raises(HostError, match=r"^only 100 MiB free"):
        a_node.run()
