"""What a campaign makes of its candidates' flow runs, state by state, without a server."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from arl_core.config import load_config
from flows import nodes as module
from flows import wire
from flows.experiment import HOST_DIED
from flows.nodes import NodeSlots, _Job, _Past
from flows.slots import Order
from frozen_env.contract import Cause, Ending, HostError, RunResult

RESULT = RunResult(Ending.FINISHED, environment_digest="digest", seed=3)
REFUSAL = Failed(message="Flow run encountered an exception: HostError: no GPU answers")


class World:
    """NodeSlots without its thread and its server: the test says how the runs stand, moves the clock, and looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.said, self.cancelled = 1000.0, [], []
        self.states, self.beats, self.results, self.runs_of = {}, {}, {}, {}
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(
            module, "_artifacts", lambda _client, ids, kind: self.beats if kind == module.BEAT else self.results
        )
        monkeypatch.setattr(module, "_forget", lambda *_: None)
        monkeypatch.setattr(module, "_cancel", lambda _client, run, at_once=False: self.cancelled.append(run.id))
        self.slots = NodeSlots.__new__(NodeSlots)
        self.slots.environment_digest, self.slots._silence_s, self.slots._say = "digest", 60.0, self.said.append
        self.slots._jobs, self.slots._guard, self.slots._back_s = {}, threading.Lock(), -math.inf
        self.slots._delivered, self.slots._patience_s, self.pauses_s = 0, 1000.0, []
        self.slots._ask = lambda question: question(SimpleNamespace(read_flow_runs=lambda **_: self.runs()))
        self.slots._schedule = self.schedule
        self.numbers = itertools.count(1)

    def runs(self):
        return [SimpleNamespace(id=key, state=state) for key, state in self.states.items()]

    def schedule(self, order, on_event, future, past, pause_s=0.0):
        key = uuid4()
        self.slots._jobs[key] = _Job(order, on_event, future, key, past, beat_s=self.now_s)
        self.states[key] = Scheduled()
        self.last = self.runs_of[order.index] = key
        self.pauses_s.append(pause_s)

    def submit(self, index: int = 7, on_event=lambda _event: None) -> Future:
        future: Future = Future()
        self.schedule(Order(index, "x", 3, None, "none", {}), on_event, future, _Past())
        return future

    def look(self, state=None, later_s: float = 1.0, beat: int | None = None, index: int | None = None, **told):
        """Let time pass, and the last run (or the experiment's) stand as the test says."""
        self.now_s += later_s
        run = self.last if index is None else self.runs_of[index]
        if state is not None:
            self.states[run] = state
        if beat is not None:
            self.beats[run] = told | {"beat": beat}
        self.slots._look_at(list(self.slots._jobs.values()))


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_a_result_is_handed_over(world):
    future = world.submit()
    world.look(Running(), beat=1)
    world.results[world.last] = wire.pack(RESULT.to_json())
    world.look(Completed())
    assert future.result(0) == RESULT
    assert world.slots._jobs == {}


def test_a_long_wait_for_a_worker_is_no_silence(world):
    future = world.submit()
    world.look(Scheduled(), later_s=10_000)
    assert "is one running?" in world.said[0]
    world.look(Running())
    world.look(Running(), later_s=50)
    assert not future.done()
    assert world.cancelled == []
    assert len(world.slots._jobs) == 1


def test_a_heart_that_beats_is_alive_however_long_it_takes(world):
    world.submit()
    for beat in range(1, 100):
        world.look(Running(), later_s=50, beat=beat)
    assert world.cancelled == []


def test_a_silent_node_has_its_candidate_scheduled_once_more(world):
    future = world.submit()
    world.look(Running(), beat=1)
    first = world.last
    world.look(Running(), later_s=61)
    assert world.cancelled == [first]
    assert world.last != first
    assert "experiment 7 is scheduled again: its node was silent for 60 s" in world.said[0]
    world.results[world.last] = wire.pack(RESULT.to_json())
    world.look(Completed())
    assert future.result(0) == RESULT


def test_a_candidate_under_which_two_nodes_died_counts_as_crashed(world):
    future = world.submit()
    world.look(Crashed(message="the process died"))
    world.look(Cancelled())
    assert (future.result(0).ending, future.result(0).cause) == (Ending.CRASHED, Cause.ABORTED)
    assert "died under it 2 times" in future.result(0).reason


def test_what_is_lost_while_the_server_is_away_is_not_the_candidates_doing(world):
    future = world.submit()
    world.look(Running(), beat=1)
    world.slots._back_s = world.now_s + 0.5
    world.look(Crashed(message="no process can begin without the server"))
    world.look(Crashed(message="the process died"))
    assert not future.done(), "one death is held against it, not two"
    world.look(Crashed(message="the process died"))
    assert future.result(0).cause is Cause.ABORTED


@pytest.mark.parametrize(
    "why",
    [
        "ManifestError: this node has frozen environment a, the campaign b",
        "DataMissing: no prepared text in data",
        "SandboxUnavailable: this kernel offers Landlock ABI 0",
        "ProblemError: no folder examples/digits",
        "FrozenEnvError: unknown environment setting 'depth'",
        "HostError: every GPU is taken by another candidate",
        "HostError: GPU a has vanished while the candidate ran",
        "OSError: [Errno 28] No space left on device",
    ],
)
def test_a_candidate_that_nodes_refuse_ends_the_campaign_and_is_not_blamed(world, why):
    future = world.submit()
    for _ in range(2):
        assert not future.done()
        world.look(Failed(message=f"Flow run encountered an exception: {why}"))
    with pytest.raises(HostError, match=rf"nodes refuse experiment 7: Failed: .*{re.escape(why)}.*Mend or stop"):
        future.result(0)
    assert world.pauses_s == [0.0, module.REFUSED_PAUSE_S], "time for another node to take it"


def test_a_refusal_and_a_death_do_not_add_up(world):
    future = world.submit()
    world.look(REFUSAL)
    world.look(Crashed(message="the process died"))
    assert not future.done(), "one node refused it, one died under it"
    world.look(Crashed(message="the process died"))
    assert future.result(0).cause is Cause.ABORTED


def test_a_host_that_dies_under_a_candidate_twice_is_held_against_it(world):
    future = world.submit()
    for _ in range(2):
        world.look(Failed(message=f"Flow run encountered an exception: HostError: {HOST_DIED}: exit code -9"))
    assert (future.result(0).ending, future.result(0).cause) == (Ending.CRASHED, Cause.ABORTED)


def test_a_candidate_that_one_node_refuses_waits_for_the_node_that_trains(world):
    world.submit(6)
    world.look(Running(), beat=1, index=6, event="started", startup_s=2.0)
    refused = world.submit(7)
    for beat in range(2, 7):
        world.look(REFUSAL, beat=beat, index=7)
        assert not refused.done()
    world.results[world.runs_of[6]] = wire.pack(RESULT.to_json())
    world.look(Completed(), index=6)
    world.look(REFUSAL, index=7)
    assert not refused.done(), "a node has just delivered"
    world.results[world.runs_of[7]] = wire.pack(RESULT.to_json())
    world.look(Completed(), index=7)
    assert refused.result(0) == RESULT


def test_a_node_that_trains_and_never_delivers_is_not_waited_for_for_ever(world):
    world.submit(6)
    refused = world.submit(7)
    began_s, beat = world.now_s, 0
    while not refused.done():
        beat += 1
        world.look(Running(), beat=beat, index=6, later_s=25, event="started", startup_s=2.0)
        world.look(REFUSAL, index=7, later_s=25)
    assert "nodes refuse experiment 7" in str(error_of(refused))
    assert world.slots._patience_s <= world.now_s - began_s <= world.slots._patience_s + 100


def test_when_all_nodes_refuse_all_candidates_the_campaign_ends(world):
    flights = [world.submit(index) for index in (1, 2, 3)]
    for _ in range(2):
        for index in (1, 2, 3):
            world.look(Running(), index=index, beat=1)
        for index in (1, 2, 3):
            world.look(REFUSAL, index=index)
    assert all("nodes refuse experiment" in str(error_of(flight)) for flight in flights)


def test_a_heart_tells_the_display_what_its_candidate_does(world):
    told = []
    world.submit(on_event=told.append)
    world.look(Running(), beat=1)
    world.look(beat=2, event="started", startup_s=2.0)
    world.look(beat=3, event="started", startup_s=2.0, fraction=0.5, loss=3.25)
    world.look(beat=4, event="scoring", startup_s=2.0, fraction=1.0, loss=3.0)
    assert [(one["event"], one["phase"], one.get("loss")) for one in told] == [
        ("beat", "starting", None),
        ("beat", "training", None),
        ("beat", "training", 3.25),
        ("beat", "scoring", 3.0),
    ]


def test_a_worker_that_took_a_candidate_and_died_before_it_began(world):
    world.submit()
    world.look(Pending())
    first = world.last
    world.look(Pending(), later_s=100)
    assert world.last == first
    world.look(Pending(), later_s=100)
    assert world.last != first
    assert "did not begin" in world.said[0]


@pytest.mark.parametrize("data", [{}, {"zlib+base64": "torn"}, wire.pack({"ending": "finished"})])
def test_a_result_that_cannot_be_read_is_run_again(world, data):
    future = world.submit()
    world.results[world.last] = data
    first = world.last
    world.look(Completed())
    assert world.last != first
    assert not future.done()


def test_a_result_of_another_environment_is_not_believed(world):
    world.submit()
    first = world.last
    world.results[first] = wire.pack(RunResult(Ending.FINISHED, environment_digest="other").to_json())
    world.look(Completed())
    assert world.last != first
    assert "its result is of frozen environment other" in world.said[0]


class Server:
    """As much of a Prefect server as NodeSlots itself asks for. `stubborn` runs stay alive when they are cancelled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states, self.stubborn, self.asked = {}, set(), []
        self.creating, self.may_create = threading.Event(), threading.Event()
        self.may_create.set()
        monkeypatch.setattr(module, "get_client", lambda **_: contextlib.nullcontext(self))
        monkeypatch.setattr(module, "POLL_S", 0.01)

    def read_deployment_by_name(self, _name):
        return SimpleNamespace(id=uuid4())

    def create_flow_run_from_deployment(self, *_, **__):
        self.creating.set()
        assert self.may_create.wait(30)
        return self.add(Scheduled())

    def add(self, state):
        key = uuid4()
        self.states[key] = state
        return SimpleNamespace(id=key, state=state)

    def read_flow_runs(self, *, flow_run_filter, limit=200):
        """At most 200 at a time, as a real server has it."""
        found = list(self.states.items())
        if flow_run_filter.state:
            found = [(key, state) for key, state in found if state.type in flow_run_filter.state.type.any_]
        if flow_run_filter.id:
            chosen, others = flow_run_filter.id.any_, flow_run_filter.id.not_any_ or []
            found = [(key, state) for key, state in found if key not in others and (chosen is None or key in chosen)]
        return [SimpleNamespace(id=key, state=state) for key, state in found[: min(limit, 200)]]

    def read_artifacts(self, **_):
        return []

    def set_flow_run_state(self, key, state, force):
        assert force
        self.asked.append(key)
        if key not in self.stubborn:
            self.states[key] = state

    def open(self) -> NodeSlots:
        config = load_config("embedded", {"parallel": 1024, "nodes.deployment": "experiment/node"})
        return NodeSlots(config, "campaign", "digest", lambda _words: None)


ORDER = Order(7, "x", 3, None, "none", {})


def error_of(flight: Future) -> BaseException:
    return flight.exception(timeout=30)


def run_aside(slots: NodeSlots) -> Future:
    """Run a candidate on another thread, as a second look does."""
    told: Future = Future()

    def run() -> None:
        try:
            told.set_result(slots.run(ORDER, lambda _event: None))
        except BaseException as error:
            told.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return told


def test_whoever_waits_when_the_campaign_ends_is_told(monkeypatch):
    server = Server(monkeypatch)
    slots = server.open()
    told = run_aside(slots)
    while not slots._jobs:
        assert not told.done()
    slots.close()
    assert isinstance(error_of(told), HostError)
    assert "the campaign ended while experiment 7 ran" in str(error_of(told))
    assert [state.name for state in server.states.values()] == ["Cancelled"]


def test_a_candidate_that_is_being_scheduled_when_the_campaign_ends_does_not_run(monkeypatch):
    server = Server(monkeypatch)
    slots = server.open()
    server.may_create.clear()
    told = run_aside(slots)
    assert server.creating.wait(30)
    slots.close()
    server.may_create.set()
    assert "the campaign ended while experiment 7 ran" in str(error_of(told))
    assert [state.name for state in server.states.values()] == ["Cancelled"]
    with pytest.raises(HostError, match="the campaign ended"):
        slots.submit(ORDER, lambda _event: None)
    assert len(server.states) == 1, "after the end nothing is put on the server"


@pytest.mark.parametrize("ends", [Completed(), Crashed()])
def test_what_ends_while_the_campaign_does_is_settled_once(world, ends):
    """close() tells whoever waits, while the thread that watches has just seen the run end."""
    future = world.submit()
    world.results[world.last] = wire.pack(RESULT.to_json())
    job = world.slots._jobs[world.last]
    job.past.deaths = module.ATTEMPTS - 1
    future.set_exception(HostError("the campaign ended"))
    world.look(ends)
    assert str(error_of(future)) == "the campaign ended"
    assert world.slots._jobs == {}


def test_all_that_a_killed_campaign_left_behind_is_cancelled_once(monkeypatch):
    server = Server(monkeypatch)
    runs = [server.add(Running() if number % 2 else Scheduled()).id for number in range(450)]
    done = server.add(Completed()).id
    server.stubborn = set(runs[:250])
    server.open().close()
    assert sorted(server.asked) == sorted(runs)
    assert done not in server.asked
