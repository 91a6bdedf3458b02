"""Candidates side by side: who is started when, what a straggler holds up, what is settled against whom."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from arl_core.config import StopSettings
from arl_core.patch import Patch
from arl_core.records import Experiment, source_hash
from arl_core.stop_conditions import StopConditions
from flows import parallel
from flows.confirm import OutOfTime
from flows.costs import Costs
from flows.unsettled import Landed, Proposal
from frozen_env.contract import HostError, Status


class World:
    """A campaign around run_parallel: its edits are words, its slots are answered by the test, its memory is a list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slots: int, edits: dict[int, str], answers: list[int]) -> None:
        self.edits, self.answers = edits, answers
        self.batches: list[list[int]] = []
        self.under_way: list[set[str]] = []
        self.committed: list[tuple[int, str]] = []
        self.flying: dict[int, Future] = {}
        self.most_flying = 0
        self.better: set[int] = set()
        self.looked_at: list[int] = []
        self.begun: set[int] = set()
        self.ran: list[object] = []
        self.values: dict[int, float] = {}  # of runs that are better; the index where nothing is said
        self.look_may_end = threading.Event()
        self.events: list[dict] = []
        self.policy_at = "cpu"
        self.policy_beside: list[int] = []  # candidates that began while it was on the GPU
        self.session = SimpleNamespace(
            slots=SimpleNamespace(count=slots, submit=self.submit),
            display=SimpleNamespace(
                begin=lambda *_: None, phase=lambda *_: None, settled=lambda *_: None, event=self.events.append
            ),
            memory=SimpleNamespace(incumbent=lambda _: None),
            make_room=self.make_room,
            after_commit=Costs(None),
            campaign=SimpleNamespace(id="c", direction="lower"),
            last_index=99,
            show=lambda _index: None,
            landed={},
            keep=self.keep,
            ran=self.ran.append,
        )
        monkeypatch.setattr(parallel, "propose_edits", self.propose)
        monkeypatch.setattr(parallel, "conclude", self.conclude)
        monkeypatch.setattr(
            parallel,
            "judge_at_once",
            lambda _session, _proposal, result: None if isinstance(result, SimpleNamespace) else "judged",
        )
        monkeypatch.setattr(parallel, "look_at", self.look_at)
        monkeypatch.setattr(parallel, "looks_begun", lambda _session: self.begun)
        monkeypatch.setattr(parallel, "order", lambda _session, source, index, _costs: SimpleNamespace(index=index))

    def propose(self, _session, indices, under_way):
        self.under_way.append(set(under_way))
        self.batches.append(list(indices))
        self.policy_at = "cuda"
        return [self.proposal(index) for index in indices]

    def proposal(self, index):
        word = self.edits.get(index, f"x = {index}")
        edit = Patch(reason="not an edit", code="bad") if word == "invalid" else Patch(source=word)
        return Proposal(index, 0, 1.0, SimpleNamespace(runs_again=False), edit, 0, Costs(None))

    def keep(self, landed):
        self.session.landed[landed.proposal.index] = landed

    def make_room(self):
        self.policy_at = "cpu"

    def submit(self, order, on_event):
        if self.policy_at != "cpu":
            self.policy_beside.append(order.index)
        on_event({"event": "started", "startup_s": 1.0})
        self.flying[order.index] = Future()
        self.most_flying = max(self.most_flying, len(self.flying))
        self.answer()
        return self.flying.get(order.index) or self.last

    def answer(self):
        """Give the next answer when the one that it is for is under way."""
        if self.answers and self.answers[0] in self.flying:
            self.last_index = self.answers.pop(0)
            self.last = self.flying.pop(self.last_index)
            value = self.values.get(self.last_index, self.last_index)
            self.last.set_result(better(value) if self.last_index in self.better else "result")

    def look_at(self, _session, proposal, _result):
        self.looked_at.append(proposal.index)
        assert self.look_may_end.wait(30)
        return "judged"

    def conclude(self, _session, proposal, result, _judged):
        status = (
            Status.DISCARDED
            if result
            else (Status.DUPLICATE if proposal.edit.duplicate_of is not None else Status.REJECTED)
        )
        self.session.landed.pop(proposal.index, None)
        self.committed.append((proposal.index, status.value))
        self.answer()
        return Experiment("c", proposal.index, status)

    def run(self, indices, **limits):
        parallel.run_parallel(self.session, iter(indices), StopConditions(StopSettings(**limits)))


def better(value: float) -> SimpleNamespace:
    """A run that looks better than the incumbent."""
    return SimpleNamespace(score=SimpleNamespace(value=value))


def test_a_straggler_holds_nobody_up(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[2, 3, 4, 5, 1])
    world.run(range(1, 6))
    assert world.committed == [(index, "discarded") for index in (2, 3, 4, 5, 1)]
    assert world.most_flying == 2


def test_free_slots_are_filled_by_one_batch_from_one_state(monkeypatch):
    world = World(monkeypatch, 3, {}, answers=[1, 2, 3, 4])
    world.run(range(1, 5))
    assert world.batches[0] == [1, 2, 3]
    assert sorted(itertools.chain(*world.batches)) == [1, 2, 3, 4]


def test_whoever_proposes_is_told_which_programs_run_now(monkeypatch):
    world = World(monkeypatch, 2, {1: "x = 1", 2: "y = 2"}, answers=[2, 1, 3])
    world.run(range(1, 4))
    assert world.under_way[0] == set()
    assert source_hash("x = 1") in world.under_way[1]


def test_an_edit_that_cannot_run_takes_no_slot(monkeypatch):
    world = World(monkeypatch, 2, {1: "invalid", 2: "invalid"}, answers=[3, 4])
    world.run(range(1, 5))
    assert world.committed[:2] == [(1, "rejected"), (2, "rejected")]
    assert sorted(world.committed[2:]) == [(3, "discarded"), (4, "discarded")]


def test_the_same_program_is_not_run_twice_at_the_same_time(monkeypatch):
    world = World(monkeypatch, 2, {1: "y = 1", 2: "y  =  1  # again"}, answers=[1, 3])
    world.run(range(1, 4))
    assert (2, "duplicate") in world.committed
    assert sorted(world.committed) == [(1, "discarded"), (2, "duplicate"), (3, "discarded")]


def test_what_is_under_way_is_waited_for_when_the_limit_is_reached(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[2, 1, 3])
    world.run(range(1, 99), experiments=3)
    assert sorted(index for index, _ in world.committed) == [1, 2, 3]


def test_runs_that_a_killed_campaign_had_ended_get_their_second_looks_and_are_not_proposed_again(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[8])
    for index in (5, 7):
        world.keep(Landed(world.proposal(index), better(index)))
    world.look_may_end.set()
    world.run([8])
    assert world.looked_at == [5, 7]
    assert sorted(world.committed) == [(index, "discarded") for index in (5, 7, 8)]
    assert world.batches == [[8]]
    assert world.session.landed == {}


def test_what_waits_for_its_second_look_is_committed_before_it_begins(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[1, 2])
    world.better, kept = {1, 2}, []
    world.session.keep = lambda landed: (kept.append(landed.proposal.index), world.keep(landed))

    def look(_session, proposal, _result):
        assert proposal.index in kept
        return "judged"

    monkeypatch.setattr(parallel, "look_at", look)
    world.run([1, 2])
    assert kept == [1, 2]


def test_a_second_look_that_would_not_end_in_time_waits_for_the_next_start_with_those_behind_it(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[1, 2])
    world.better = {1, 2}

    def look(_session, _proposal, _result):
        raise OutOfTime("no further run would end within 8 hours")

    monkeypatch.setattr(parallel, "look_at", look)
    world.run([1, 2])
    assert world.committed == []
    assert sorted(world.session.landed) == [1, 2]


def test_second_looks_come_one_at_a_time_and_the_other_slots_go_on(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[1, 2, 3, 4])
    world.better = {1, 2}
    loop = threading.Thread(target=world.run, args=(range(1, 5),), daemon=True)
    loop.start()
    deadline_s = time.monotonic() + 30
    while not world.committed and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert world.looked_at == [1], "the second waits for the first"
    assert (3, "discarded") in world.committed, "a slot went on"
    world.look_may_end.set()
    loop.join(timeout=30)
    assert world.looked_at == [1, 2]
    assert sorted(index for index, _ in world.committed) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("direction", "begun", "order"), [("lower", [], [3, 2, 1]), ("higher", [], [1, 2, 3]), ("lower", [1], [1, 3, 2])]
)
def test_the_most_promising_is_looked_at_first_but_for_one_that_was_cut_off(monkeypatch, direction, begun, order):
    world = World(monkeypatch, 2, {}, answers=[])
    world.session.campaign.direction, world.begun = direction, set(begun)
    for index, value in ((1, 1.9), (2, 1.8), (3, 1.7)):
        world.keep(Landed(world.proposal(index), better(value)))
    world.look_may_end.set()
    world.run([])
    assert world.looked_at == order


def test_while_more_wait_for_a_second_look_than_there_are_slots_nothing_is_proposed(monkeypatch):
    world = World(monkeypatch, slots=2, edits={}, answers=[1, 2, 3, 4, 5, 6, 7, 8])
    world.better = set(range(1, 9))
    hurried = []
    waits = []

    def look(_session, proposal, _result):
        hurried.append(world.session.at_once())
        waits.append(max(map(max, world.batches)) - proposal.index)
        return "judged"

    monkeypatch.setattr(parallel, "look_at", look)
    world.run(range(1, 9))
    assert sorted(index for index, _ in world.committed) == list(range(1, 9))
    assert max(waits) <= 2 * 2, "at most the slots' number wait, and as many run"
    assert max(hurried) > 0


@pytest.mark.parametrize(
    ("waiting", "last", "limits", "at_once"),
    [
        (0, False, {}, 0),
        (1, False, {}, 1),
        (4, False, {}, 1),
        (5, False, {}, 3),
        (0, True, {}, 3),
        (2, True, {}, 3),
        (0, True, {"gpu_hours": 1.0}, 0),
        (5, False, {"gpu_hours": 1.0}, 1),
    ],
)
def test_a_second_look_fills_the_slots_that_nobody_else_will(monkeypatch, waiting, last, limits, at_once):
    """Four slots, a candidate on one. Else the slots belong to what is proposed next, and limited GPU hours are not wasted."""
    world = World(monkeypatch, slots=4, edits={}, answers=[])
    flights = parallel._Flights(world.session, iter([]), StopConditions(StopSettings(**limits)), looks=None)
    flights.running = {Future(): world.proposal(1)}
    flights.waiting = [(world.proposal(2 + k), better(1.9)) for k in range(waiting)]
    flights.last = last
    assert flights.at_once() == at_once


def test_a_plateau_that_a_new_best_ends_gives_the_slots_back_to_candidates(monkeypatch):
    world = World(monkeypatch, slots=2, edits={}, answers=[])
    stop = StopConditions(StopSettings(plateau=1))
    flights = parallel._Flights(world.session, iter([1, 2]), stop, looks=None)
    stop.settled(Experiment("c", 8, Status.DISCARDED))
    flights._fill()
    assert flights.last
    stop.settled(Experiment("c", 9, Status.KEPT))
    flights._fill()
    assert not flights.last
    assert flights.at_once() == 0


def test_every_run_counts_for_the_gpu_hours_as_it_lands(monkeypatch):
    world = World(monkeypatch, 2, {2: "invalid"}, answers=[1, 3])
    world.run(range(1, 4))
    assert world.ran == ["result", "result"]


def test_the_policy_leaves_the_gpu_before_a_run_begins_and_before_the_wait_for_the_others(monkeypatch):
    world = World(monkeypatch, 2, {1: "invalid"}, answers=[2, 3, 4])
    waited_with, looked_with = [], []
    conclude, take, look = world.conclude, parallel._Flights._take, parallel._Flights._look

    def learn(*arguments):
        world.policy_at = "cuda"  # an update
        return conclude(*arguments)

    def waiting(flights):
        waited_with.append(world.policy_at)
        take(flights)

    def looking(flights):
        waiting = len(flights.waiting)
        look(flights)
        if len(flights.waiting) < waiting:
            looked_with.append(world.policy_at)

    monkeypatch.setattr(parallel, "conclude", learn)
    monkeypatch.setattr(parallel._Flights, "_look", looking)
    monkeypatch.setattr(parallel._Flights, "_take", waiting)
    world.better = {3}
    world.look_may_end.set()
    world.run(range(1, 5))
    assert sorted(index for index, _ in world.committed) == [1, 2, 3, 4]
    assert world.policy_beside == []
    assert looked_with == ["cpu"]
    assert set(waited_with) == {"cpu"}


def test_the_display_is_told_of_each_candidate_from_its_begin_to_its_end(monkeypatch):
    world = World(monkeypatch, 2, {1: "invalid"}, answers=[3, 2])
    world.run(range(1, 4))
    told = {index: [one["event"] for one in world.events if one["index"] == index] for index in (1, 2, 3)}
    assert told == {1: [], 2: ["begun", "started", "ended"], 3: ["begun", "started", "ended"]}


def test_what_has_ended_beside_a_run_that_fails_is_taken_in_before_the_campaign_ends(monkeypatch):
    world = World(monkeypatch, 2, {}, answers=[])
    flying = {1: Future(), 2: Future()}
    monkeypatch.setattr(world.session.slots, "submit", lambda order, _on_event: flying[order.index])
    original = parallel._Flights._take

    def take(flights):
        flying[1].set_exception(HostError("gone"))
        flying[2].set_result(better(0.5))
        original(flights)

    monkeypatch.setattr(parallel._Flights, "_take", take)
    with pytest.raises(HostError, match="gone"):
        world.run([1, 2])
    assert list(world.session.landed) == [2]


def test_a_host_that_keeps_dying_ends_the_campaign(monkeypatch):
    world = World(monkeypatch, 1, {}, answers=[])

    def submit(order, _on_event):
        future = Future()
        future.set_exception(HostError("gone"))
        return future

    world.session.slots.submit = submit
    with pytest.raises(HostError, match="gone"):
        world.run(range(1, 3))
    assert world.committed == []
