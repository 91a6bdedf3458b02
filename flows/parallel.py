"""Candidates side by side: K edits proposed from one state, results taken as they come.

A straggler holds nobody up: as soon as a slot is free, the next edit is proposed from the state of that moment. The
policy learns in batches of `policy.batch_edits`, in the order in which results arrive. Experiments are committed in that
order too, under the index that they were proposed with; a campaign that is killed resumes with the indices that are missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import Any

from arl_core.records import Experiment, source_hash
from arl_core.stop_conditions import StopConditions
from flows.iteration import Proposal, conclude, order, propose_edits
from flows.session import Session
from frozen_env.contract import RunResult

WAKE_S = 0.5  # how often the wait for results looks at signals and stop conditions


def run_parallel(session: Session, indices: Iterator[int], stop: StopConditions) -> None:
    """Run the experiments of `indices`, session.slots.count at a time, until there are no more or `stop` says so."""
    flights: dict[Future[RunResult], Proposal] = {}
    while True:
        _fill(session, indices, stop, flights)
        if not flights:
            return
        _tell(session, flights)
        done: set[Future[RunResult]] = set()
        while not done:
            done = wait(flights, timeout=WAKE_S, return_when=FIRST_COMPLETED).done
        for future in sorted(done, key=lambda one: flights[one].index):
            proposal = flights.pop(future)
            proposal.costs.parts["run"] = proposal.costs.since_began() - proposal.costs.parts.get("patch", 0.0)
            settled(session, stop, conclude(session, proposal, future.result()))


def settled(session: Session, stop: StopConditions, experiment: Experiment) -> None:
    stop.settled(experiment)
    session.display.settled(experiment, session.memory.incumbent(session.campaign.id))


def _fill(
    session: Session, indices: Iterator[int], stop: StopConditions, flights: dict[Future[RunResult], Proposal]
) -> None:
    """Propose until every slot has a candidate. An edit that cannot run is settled at once and costs no slot."""
    while free := session.slots.count - len(flights):
        taken = list(_next(indices, stop, free))
        if not taken:
            return
        session.display.begin(taken[-1], session.last_index)
        for proposal in propose_edits(session, taken):
            proposal = _not_in_flight(proposal, flights)
            if not proposal.edit.runs:
                settled(session, stop, conclude(session, proposal, None))
                continue
            job = order(session, proposal.edit.source, proposal.index, proposal.costs)
            flights[session.slots.submit(job, _ignore)] = proposal


def _next(indices: Iterator[int], stop: StopConditions, most: int) -> Iterator[int]:
    for _ in range(most):
        if stop.reason():
            return
        for index in itertools.islice(indices, 1):
            stop.begin()
            yield index


def _not_in_flight(proposal: Proposal, flights: dict[Future[RunResult], Proposal]) -> Proposal:
    """The memory knows what was tried; this knows what is being tried."""
    if not proposal.edit.runs:
        return proposal
    wanted = source_hash(proposal.edit.source)
    for other in flights.values():
        if source_hash(other.edit.source) == wanted:
            reason = f"the same program as experiment {other.index}"
            edit = replace(proposal.edit, reason=reason, code="duplicate", duplicate_of=other.index)
            return replace(proposal, edit=edit)
    return proposal


def _tell(session: Session, flights: dict[Future[RunResult], Proposal]) -> None:
    running = ", ".join(f"#{one.index}" for one in flights.values())
    session.display.phase(f"{len(flights)} of {session.slots.count} slots run: {running}")


def _ignore(_event: dict[str, Any]) -> None:
    """The display follows one candidate; with several side by side it shows how they end."""
