"""Slots of a machine: a host and a GPU each, side by side, ended within seconds, never fooled by a dead GPU or a full disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from arl_core.config import load_config
from flows import blame
from flows import slots as module
from flows.slots import LocalSlots
from flows.under_way import UnderWay
from frozen_env.contract import Ending, HostError, RunResult
from frozen_env.runtime import gpu_lock
from tests.flows.made_up_slots import MadeUpHost, opened, order, wait_until

pytestmark = pytest.mark.usefixtures("made_up_hosts")


def test_each_slot_has_a_gpu_of_its_own_and_gives_it_back(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b", "c"])
    first = opened(2)
    assert [host.gpu.name for host in MadeUpHost.made] == ["a", "b"]
    with pytest.raises(HostError, match="every GPU is taken"):
        opened(2)
    first.close()
    opened(3).close()


def test_on_a_cpu_no_gpu_is_held(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a"])
    slots = opened(2, device="cpu")
    assert [host.gpu for host in MadeUpHost.made] == [None, None]
    slots.close()


def test_without_a_gpu_that_answers_no_candidate_runs_on_the_gpus_of_others(monkeypatch):
    """Without a lock and a name it would see all of them."""
    monkeypatch.setattr(gpu_lock, "visible", list)  # nvidia-smi timed out, or ARL_GPUS names an absent GPU
    with pytest.raises(HostError, match=r"device is cuda, but no GPU answers: see `nvidia-smi`, and whether ARL_GPUS"):
        opened(1)
    assert MadeUpHost.made == []
    opened(1, device="auto").close()


def test_a_campaign_on_nodes_needs_no_gpu_of_its_own_until_a_candidate_runs_here(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", list)
    settings = {"environment.device": "cuda", "nodes.deployment": "experiment/node"}
    slots = LocalSlots(load_config("embedded", settings), 1, Path("unused"))
    slots.wait_ready()
    assert slots.environment_digest == "digest"
    with pytest.raises(HostError, match="no GPU answers"):
        slots.run(order(), print)
    assert MadeUpHost.made[0].runs == 0
    slots.close()


def test_candidates_run_side_by_side(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b"])
    slots = opened(2)
    flights = [slots.submit(order(index=index), print) for index in (1, 2)]
    wait_until(lambda: sum(host.runs for host in MadeUpHost.made) == 2)
    assert [host.runs for host in MadeUpHost.made] == [1, 1]
    for host in MadeUpHost.made:
        host.may_end.set()
    assert [flight.result(30).ending for flight in flights] == [Ending.FINISHED] * 2
    slots.close()


@pytest.mark.parametrize("listens", [True, False])
def test_closing_ends_what_runs_and_kills_what_does_not_listen(monkeypatch, tmp_path, listens):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b"])
    monkeypatch.setattr(module, "ABORT_LIMIT_S", 0.2)
    slots = opened(2)
    slots.under_way = UnderWay(tmp_path / "under_way")
    for host in MadeUpHost.made:
        host.listens = listens
    flight = slots.submit(order(), print)
    wait_until(lambda: any(host.runs for host in MadeUpHost.made))
    slots.close()
    with pytest.raises(HostError):  # and no result: a re-run that we ended says nothing of its candidate
        flight.result(0)
    assert any(host.killed for host in MadeUpHost.made) is not listens
    assert list((tmp_path / "under_way").iterdir()) == [], "an end of ours is no death"


def test_a_crash_is_not_counted_when_its_gpu_has_vanished(monkeypatch):
    present = ["a", "b"]
    monkeypatch.setattr(gpu_lock, "visible", lambda: list(present))
    slots = opened(1)
    MadeUpHost.made[0].may_end.set()
    assert slots.run(order("crash"), print).ending is Ending.CRASHED, "the GPU is there: the candidate crashed"
    present.remove("a")
    assert slots.run(order("fine"), print).ending is Ending.FINISHED
    with pytest.raises(HostError, match=r"GPU a has vanished while experiment 7 ran; it is not counted"):
        slots.run(order("crash", index=7), print)
    slots.close()


CUDA = "crash: torch.AcceleratorError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("crash", "asked"), [("crash: NameError: name 'x' is not defined", []), (CUDA, ["a"])], ids=["python", "cuda"]
)
def test_a_gpu_is_asked_to_compute_after_a_crash_that_it_could_have_caused(monkeypatch, crash, asked):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a"])
    heard: list[str] = []
    monkeypatch.setattr(blame, "gpu_fails", lambda name: heard.append(name) or "")
    slots = opened(1)
    MadeUpHost.made[0].may_end.set()
    assert slots.run(order(crash), print).ending is Ending.CRASHED, "the GPU computes: the candidate crashed"
    assert heard == asked
    slots.close()


def test_a_candidate_that_lost_its_gpu_runs_on_another_and_the_slot_is_given_up(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["sick", "well"])
    monkeypatch.setattr(blame, "gpu_fails", lambda name: "failed" if name == "sick" else "")
    said: list[str] = []
    slots = opened(2)
    slots.say = said.append
    for host in MadeUpHost.made:
        host.may_end.set()
    ran_on: list[str] = []

    def train(host: MadeUpHost, source: str, *_: object) -> RunResult:
        ran_on.append(host.gpu.name)
        return host.run(CUDA if host.gpu.name == "sick" else source)

    monkeypatch.setattr(module, "train", train)
    flights = [slots.submit(order("fine", index), print) for index in range(1, 7)]
    assert [flight.result(30).ending for flight in flights] == [Ending.FINISHED] * 6
    assert ran_on.count("sick") == 1
    assert slots.count == 1
    assert said == [
        f"warning: GPU sick failed, after experiment 1 crashed; {blame.REMEDY} (going on with 1 of the slots)"
    ]
    monkeypatch.setattr(blame, "gpu_fails", lambda _name: "failed")
    with pytest.raises(HostError, match="GPU well failed"):  # the last one ends the campaign
        slots.submit(order(CUDA, 8), print).result(30)
    slots.close()


def test_a_listing_that_hangs_takes_no_slot_from_a_gpu_that_computes(monkeypatch):
    listed = [["a", "b"]]
    monkeypatch.setattr(gpu_lock, "visible", lambda: listed[0])
    asked: list[str] = []
    monkeypatch.setattr(blame, "gpu_fails", lambda name: asked.append(name) or "")
    slots = opened(2)
    listed[0] = []  # one GPU hangs, and nvidia-smi with it
    for host in MadeUpHost.made:
        host.may_end.set()
    assert slots.submit(order("crash: NameError"), print).result(30).ending is Ending.CRASHED
    assert asked in (["a"], ["b"])
    assert slots.count == 2
    slots.close()


def test_an_edit_under_which_two_gpus_were_lost_is_not_run_on_a_third(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b", "c"])
    monkeypatch.setattr(blame, "gpu_fails", lambda _name: "failed")
    slots = opened(3)
    slots.under_way = UnderWay(tmp_path / "under_way")
    for host in MadeUpHost.made:
        host.may_end.set()
    with pytest.raises(HostError, match="failed, after experiment 5 crashed"):
        slots.submit(order(CUDA, 5), print).result(30)
    assert sum(host.runs for host in MadeUpHost.made) == 2
    assert slots.count == 2
    assert len(list((tmp_path / "under_way").iterdir())) == 1, "it carries that as a death"
    slots.close()


def test_a_host_that_died_with_its_gpu_is_no_death_of_its_candidate(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["sick", "well"])
    monkeypatch.setattr(blame, "gpu_fails", lambda name: "hangs" if name == "sick" else "")

    def train(host: MadeUpHost, *_: object) -> RunResult:
        if host.gpu.name == "sick":
            raise HostError("the host process ended")
        return RunResult(Ending.FINISHED)

    monkeypatch.setattr(module, "train", train)
    slots = opened(2)
    slots.under_way = UnderWay(tmp_path / "under_way")
    flights = [slots.submit(order(index=index), print) for index in (1, 2, 3)]
    assert [flight.result(30).ending for flight in flights] == [Ending.FINISHED] * 3
    assert list((tmp_path / "under_way").iterdir()) == []
    assert slots.count == 1
    slots.close()


def test_where_fewer_gpus_answer_than_there_are_slots_those_are_used_and_it_is_said(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["a", "b"])
    slots = opened(3)
    assert [host.gpu.name for host in MadeUpHost.made] == ["a", "b"]
    assert slots.count == 2
    assert slots.notes == ["warning: parallel is 3, but 2 GPUs answer: going on with those"]
    slots.close()


def test_candidates_come_last_to_the_gpu_that_the_policy_is_on(monkeypatch):
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["policy's", "b", "c"])
    slots = opened(2, policy_device="auto")
    assert [host.gpu.name for host in MadeUpHost.made] == ["b", "c"]
    assert slots.notes == []
    slots.close()
    slots = opened(3, policy_device="auto")
    assert "share GPU policy's" in slots.notes[0]
    assert "--set parallel=2" in slots.notes[0]
    slots.close()
    monkeypatch.setattr(gpu_lock, "seen_here", lambda: ["another"])  # ARL_GPUS leaves the policy's out
    slots = opened(3, policy_device="auto")
    assert [host.gpu.name for host in MadeUpHost.made[-3:]] == ["policy's", "b", "c"]
    assert slots.notes == []
    slots.close()
    monkeypatch.setattr(gpu_lock, "seen_here", lambda: ["only"])
    monkeypatch.setattr(gpu_lock, "visible", lambda: ["only"])
    slots = opened(1, policy_device="auto")
    assert slots.notes == [], "one after the other they take turns"
    slots.close()


def test_a_crash_is_not_counted_when_the_disk_has_filled(monkeypatch):
    free_mb = [10_000.0]
    monkeypatch.setattr(blame.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_mb[0] * 2**20))
    slots = opened(1, device="cpu")
    MadeUpHost.made[0].may_end.set()
    assert slots.run(order("crash"), print).ending is Ending.CRASHED, "there is room: the candidate crashed"
    free_mb[0] = 700.0  # of 768: 512 of scratch files and 256 of weights
    assert slots.run(order("fine"), print).ending is Ending.FINISHED
    with pytest.raises(HostError, match=r"only 700 MiB free in .*, after experiment 7 crashed; it is not counted"):
        slots.run(order("crash", index=7), print)
    slots.close()
