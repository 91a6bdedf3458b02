"""What a second look costs and decides that was cut off, by a kill or a deadline, and goes on. Made-up runs, a real memory."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

import flows.confirm as module
from arl_core.config import StopSettings
from arl_core.patch import Patch
from arl_core.policy.rollout import Rollout
from arl_core.records import Experiment
from arl_core.repeats import Repeats
from arl_core.stop_conditions import StopConditions
from flows import iteration, parallel, research
from flows.costs import Costs
from flows.session import Session
from flows.slots import Order
from flows.unsettled import Landed, Proposal
from frozen_env.contract import RunResult, Status
from tests.flows.second_looks import WOBBLE, Killed, MadeUpHost, first_run, look, seed_experiment

pytestmark = pytest.mark.usefixtures("without_prefect")


def test_when_time_is_over_a_second_look_waits_for_the_next_start_and_repeats_nothing(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.5}, first_look=4)
    seed_experiment(session)
    host.runs.clear()
    session.out_of_time = lambda _rounds: "it is 07:00" if len(host.runs) > 2 else ""
    with pytest.raises(module.OutOfTime, match="it is 07:00"):
        look(session, "good")
    assert host.runs == [("good", 0), ("good", 1), ("good", 2)]
    session.out_of_time = lambda _rounds: ""
    assert look(session, "good").outcome.status is Status.KEPT
    assert host.runs[3:] == [("good", 3), ("good", 4), ("base", 4)]


def test_a_start_whose_time_ends_in_a_second_look_ends_there_says_so_and_the_next_one_goes_on_with_the_same_run(
    open_session, monkeypatch
):
    """Whatever the policy would propose by then: the run is in the memory with its proposal."""
    values = {"base": 2.0, "good": 1.5}
    session, host, said = open_session(values)
    session.slots.environment_digest = "digest"
    seed_experiment(session)
    proposal = Proposal(
        1, 0, 2.0, Rollout.foreign("prompt", "completion", 0), Patch("good", "diff", "better"), 0, Costs(None)
    )

    def first_run_then_out_of_time(session: Session, _index: int) -> Experiment:
        result = session.slots.run(first_run("good"), print)
        session.out_of_time = lambda _rounds: "it is 07:00"
        return iteration.settle_run(session, proposal, result)

    monkeypatch.setattr(research, "run_iteration", first_run_then_out_of_time)
    research.run(session, StopConditions(StopSettings()))
    assert said[-1] == "the second look at #1 goes on at the next start"
    assert session.memory.next_index("c") == 1

    monkeypatch.setattr(research, "run_iteration", lambda *_: pytest.fail("nothing is left to propose"))
    session, again, _ = open_session(values)
    session.last_index = 1
    research.run(session, StopConditions(StopSettings()))
    assert host.runs[4:] + again.runs == [("good", 0), ("good", 1), ("good", 2), ("good", 3)]
    settled = session.memory.experiment("c", 1)
    assert settled is not None
    assert (settled.status, settled.summary, settled.confirmations) == (Status.KEPT, "better", 3)
    assert session.landed == {}
    assert open_session(values)[0].landed == {}


def test_side_by_side_too_a_resumed_campaign_settles_the_runs_that_had_ended(open_session, monkeypatch):
    values = {"base": 2.0, "good": 1.5, "even": 1.999}
    session, _, _ = open_session(values)
    session.slots.environment_digest = "digest"
    seed_experiment(session)
    for index, source in ((2, "even"), (3, "good")):
        rollout = Rollout.foreign("prompt", "completion", 0)
        proposal = Proposal(index, 0, 2.0, rollout, Patch(source, "diff", source), 0, Costs(None))
        session.keep(Landed(proposal, session.slots.run(first_run(source), print)))

    session, host, said = open_session(values)
    host.count, session.last_index = 2, 3
    monkeypatch.setattr(parallel, "propose_edits", lambda _session, indices, _under_way: proposed.append(indices) or [])
    proposed: list[list[int]] = []
    stop, counted = StopConditions(StopSettings()), list[RunResult]()
    stop.ran = counted.append
    research.run(session, stop)
    assert proposed == [[1]], "what had ended is not proposed again"
    statuses = {one.index: one.status for one in session.memory.experiments("c")}
    assert statuses == {0: Status.KEPT, 2: Status.DISCARDED, 3: Status.KEPT}
    assert host.runs == [("good", 1), ("good", 2), ("good", 3)]
    assert len(counted) == 3, "GPU hours are those of this start's runs"
    assert open_session(values)[0].landed == {}
    assert not any("goes on at the next start" in line for line in said)


@pytest.mark.parametrize("die_at", range(4))
def test_a_kill_in_the_noise_floor_costs_the_run_in_flight(open_session, die_at):
    dying, host, _ = open_session({"base": 2.0}, die_at=die_at)
    with pytest.raises(Killed):
        seed_experiment(dying)
    session, again, _ = open_session({"base": 2.0})
    seed = seed_experiment(session)
    assert host.runs + again.runs == [("base", 0), ("base", 1), ("base", 2), ("base", 3)]
    assert seed.confirmations == 3


@pytest.mark.parametrize("die_at", range(1, 4))
def test_a_kill_between_re_runs_costs_the_run_in_flight_and_changes_no_decision(open_session, die_at):
    values = {"base": 2.0, "good": 1.5}
    seed_experiment(open_session(values)[0])
    dying, host, _ = open_session(values, die_at=die_at)
    with pytest.raises(Killed):
        look(dying, "good")
    level = Repeats(dying.memory).of("c")[-1].level if die_at == 1 else None
    session, again, _ = open_session(values)
    found = look(session, "good")
    assert host.runs + again.runs == [("good", 0), ("good", 1), ("good", 2), ("good", 3)]
    assert found.outcome.status is Status.KEPT
    rows = Repeats(session.memory).of("c")
    levels = [row.level for row in rows if row.level is not None]
    assert len(levels) == 1, "one test, one level"
    assert level in (None, levels[0])
    assert found.fields["extra"]["confirmation"]["runs"] == 3


def test_the_error_of_a_test_that_was_killed_for_good_stays_spent(open_session):
    values = {"base": 2.0, "good": 1.5, "other": 1.4}
    seed_experiment(open_session(values)[0])
    dying, _, _ = open_session(values, die_at=2)
    with pytest.raises(Killed):
        look(dying, "good")
    session, _, _ = open_session(values)  # the policy proposes something else this time
    look(session, "other")
    levels = [row.level for row in Repeats(session.memory).of("c") if row.level is not None]
    assert len(levels) == 2
    assert sum(levels) < 0.05


class DiesInTheBatch(MadeUpHost):
    """Runs at once what it is given; only the seeds in `lands` come back before the kill."""

    count = 3
    lands: tuple[int, ...] = (1, 2, 3)

    def submit(self, order: Order, on_event: Any) -> Future[RunResult]:
        if order.seed in self.lands:
            return super().submit(order, on_event)
        lost: Future[RunResult] = Future()
        lost.set_exception(Killed())
        return lost


@pytest.mark.parametrize(("lands", "idle"), [((1,), 3), ((1, 3), 0)], ids=["the first pair", "the first and the third"])
def test_a_kill_in_the_middle_of_runs_at_once_does_not_drop_a_candidate_for_its_first_pair(
    open_session, tmp_path, monkeypatch, lands, idle
):
    monkeypatch.setitem(WOBBLE, 1, -0.2)  # the incumbent's lucky seed
    monkeypatch.setattr(module, "as_completed", lambda flying: sorted(flying, key=lambda one: bool(one.exception())))
    values = {"base": 2.0, "good": 1.75}

    def begun(lands: tuple[int, ...] = (1, 2, 3)) -> Session:
        session, _, _ = open_session(values)
        seed_experiment(session)
        session.slots = DiesInTheBatch(values)
        session.slots.lands, session.at_once = lands, lambda: 3
        return session

    whole = look(begun(), "good")
    assert whole.fields["extra"]["confirmation"]["pairs"] >= 3
    (tmp_path / "memory.duckdb").rename(tmp_path / "other.duckdb")
    with pytest.raises(Killed):
        look(begun(lands), "good")
    session, host, _ = open_session(values)
    session.at_once = lambda: idle
    found = look(session, "good")
    assert found.outcome == whole.outcome
    assert not set(host.runs) & {("good", seed) for seed in lands}, "what landed is not run again"


def test_one_slot_goes_on_with_the_second_look_that_had_begun_before_those_that_landed_earlier(
    open_session, monkeypatch
):
    session, _, _ = open_session({"base": 2.0, "good": 1.5})
    for index in (1, 2, 3):
        proposal = Proposal(
            index, 0, 2.0, Rollout.foreign("", "", 0), Patch("good", "diff", str(index)), 0, Costs(None)
        )
        session.landed[index] = Landed(proposal, session.slots.run(first_run("good"), print))
    settled: list[int] = []
    monkeypatch.setattr(research, "looks_begun", lambda _session: {3})
    monkeypatch.setattr(research, "settle_run", lambda _session, proposal, _result: settled.append(proposal.index))
    monkeypatch.setattr(research, "take_in", lambda *_: None)
    research.run_in_turn(session, iter(()), StopConditions(StopSettings()))
    assert settled == [3, 1, 2]
