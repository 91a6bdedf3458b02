"""Candidates side by side: K edits proposed from one state, results taken as they come.

A straggler holds nobody up: as soon as a slot is free, the next edit is proposed from the state of that moment. A run that
looks better than the incumbent is run again, in pairs, on one slot while the others go on (on more when further ones wait, or
nothing more is proposed). Such second looks come one after the other, the most promising first, each against the incumbent of
its time. The policy learns in batches of `policy.batch_edits`, in the order in which experiments are settled. They are
committed in that order too, under the index that they were proposed with; a campaign that is killed resumes with the second
looks that it had not done, and with the indices that are missing.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from arl_core.records import source_hash
from arl_core.second_look import most_promising
from arl_core.stop_conditions import StopConditions
from flows.confirm import OutOfTime, looks_begun
from flows.iteration import Judged, conclude, judge_at_once, look_at, order, propose_edits, take_in
from flows.session import Session
from flows.unsettled import Landed, Proposal
from frozen_env.contract import RunResult

WAKE_S = 0.5  # how often the wait for results lets signals in


def run_parallel(session: Session, indices: Iterator[int], stop: StopConditions) -> None:
    """Run the experiments of `indices`, session.slots.count at a time, until there are no more or `stop` says so."""
    looks = ThreadPoolExecutor(1, thread_name_prefix="second-look")
    flights = _Flights(session, indices, stop, looks)
    session.at_once, session.side_by_side = flights.at_once, True
    try:
        flights.run()
    finally:
        looks.shutdown(wait=False, cancel_futures=True)  # its run ends with the slots, which are closed after us


@dataclass
class _Flights:
    """What is under way: runs, at most one second look, and runs that wait for theirs (those hold no slot)."""

    session: Session
    indices: Iterator[int]
    stop: StopConditions
    looks: ThreadPoolExecutor
    running: dict[Future[RunResult], Proposal] = field(default_factory=dict)
    waiting: list[tuple[Proposal, RunResult]] = field(default_factory=list)
    looking: tuple[Future[Judged], Proposal, RunResult] | None = None
    late: bool = False  # no re-run would end in time: what waits for its second look waits for the next start
    last: bool = False  # nothing more is to be proposed, as it stands: a new best ends a plateau

    def at_once(self) -> int:
        """How many runs the second look under way may do at once beyond its first decision; 0: not even that, one by one.

        Where others wait for theirs, the runs up to the first decision go together; where besides nothing is proposed, every idle
        slot takes one. Who limits GPU hours pays for no run that one by one might have spared.
        """
        count = self.session.slots.count
        if (self.last or len(self.waiting) > count) and self.stop.settings.gpu_hours is None:
            return max(1, count - len(self.running))
        return int(bool(self.waiting))

    @property
    def free(self) -> int:
        return self.session.slots.count - len(self.running) - bool(self.looking)

    def run(self) -> None:
        for one in list(self.session.landed.values()):  # what an earlier start has run and not settled
            self._landed(one.proposal, one.result)
        while True:
            self._look()
            self._fill()
            if not (self.running or self.looking):
                return
            self._tell()
            self.session.make_room()  # an update may have brought the policy back beside those that run
            self._take()

    def _look(self) -> None:
        """Begin the next second look, before new edits take the slot."""
        if self.waiting and self.looking is None and self.free > 0 and not self.late:
            proposal, result = self.waiting.pop(self._next_look())
            self.session.make_room()
            context = contextvars.copy_context()  # Prefect's: its runs belong to the campaign's flow run
            future = self.looks.submit(context.run, look_at, self.session, proposal, result)
            self.looking = (future, proposal, result)

    def _next_look(self) -> int:
        """Return the place, among those that wait, of the run to look at next."""
        firsts = [
            (proposal.index, result.score.value if result.score is not None else None)
            for proposal, result in self.waiting
        ]
        return most_promising(firsts, looks_begun(self.session), self.session.campaign.direction)

    def _fill(self) -> None:
        """Propose until every slot has a candidate. An edit that cannot run is settled at once and costs no slot.

        Nothing is proposed while more runs wait for their second look than there are slots: they would be judged late, teach
        late, and keep the machine long after the deadline.
        """
        while self.free > 0 and len(self.waiting) <= self.session.slots.count:
            taken = list(_next(self.indices, self.stop, self.free))
            self.last = not taken
            if not taken:
                return
            self.session.display.begin(taken[-1], self.session.last_index)
            under_way = {source_hash(one.edit.source) for one in self._under_way()}
            for proposal in propose_edits(self.session, taken, under_way):
                self._begin(self._not_under_way(proposal))

    def _begin(self, proposal: Proposal) -> None:
        if not proposal.edit.runs:
            self._landed(proposal, None)
            return
        job = order(self.session, proposal.edit.source, proposal.index, proposal.costs)
        self.session.make_room()
        self._show(proposal, {"event": "begun", "summary": proposal.edit.summary})
        on_event = functools.partial(self._show, proposal)
        self.running[self.session.slots.submit(job, on_event)] = proposal

    def _show(self, proposal: Proposal, event: dict[str, Any]) -> None:
        """Tell the display which of the candidates side by side an event is about."""
        self.session.display.event(event | {"index": proposal.index})

    def _take(self) -> None:
        """Wait until something has landed, and settle it."""
        pending: set[Future[Any]] = {*self.running, *([self.looking[0]] if self.looking else [])}
        done: set[Future[Any]] = set()
        while not done:
            done = wait(pending, timeout=WAKE_S, return_when=FIRST_COMPLETED).done
        for future in sorted(done, key=self._turn):
            if future in self.running:
                proposal = self.running.pop(future)
                self._show(proposal, {"event": "ended"})
                proposal.costs.parts["run"] = proposal.costs.since_began() - proposal.costs.parts.get("patch", 0.0)
                self.session.ran(result := future.result())
                self._landed(proposal, result)
            elif self.looking is not None:
                self._looked_at(*self.looking)

    def _turn(self, future: Future[Any]) -> tuple[bool, int]:
        """The second look first, as it may promote; what failed last: what the others gave is taken in before the campaign ends."""
        return future.exception() is not None, self.running[future].index if future in self.running else -1

    def _looked_at(self, look: Future[Judged], proposal: Proposal, result: RunResult) -> None:
        self.looking = None
        try:
            judged = look.result()
        except OutOfTime:
            self.late = True
            self.waiting.append((proposal, result))
        else:
            take_in(self.session, self.stop, conclude(self.session, proposal, result, judged))

    def _landed(self, proposal: Proposal, result: RunResult | None) -> None:
        judged = judge_at_once(self.session, proposal, result)
        if judged is not None:
            take_in(self.session, self.stop, conclude(self.session, proposal, result, judged))
        elif result is not None:
            self.session.keep(Landed(proposal, result))
            self.waiting.append((proposal, result))

    def _not_under_way(self, proposal: Proposal) -> Proposal:
        """The memory knows what was tried; this knows what is being tried."""
        if not proposal.edit.runs or proposal.rollout.runs_again:
            return proposal
        wanted = source_hash(proposal.edit.source)
        for other in self._under_way():
            if source_hash(other.edit.source) == wanted:
                reason = f"the same program as experiment {other.index}"
                return replace(
                    proposal, edit=replace(proposal.edit, reason=reason, code="duplicate", duplicate_of=other.index)
                )
        return proposal

    def _under_way(self) -> list[Proposal]:
        looking = [self.looking[1]] if self.looking else []
        return [*self.running.values(), *looking, *(proposal for proposal, _ in self.waiting)]

    def _tell(self) -> None:
        told = [f"{len(self.running)} of {self.session.slots.count} slots run candidates"]
        told += [", ".join(f"#{one.index}" for one in self.running.values())] if self.running else []
        looking = f"; second look at #{self.looking[1].index}" if self.looking else ""
        self.session.display.phase(": ".join(told) + looking)


def _next(indices: Iterator[int], stop: StopConditions, most: int) -> Iterator[int]:
    for _ in range(most):
        if stop.reason():
            return
        for index in itertools.islice(indices, 1):
            stop.begin()
            yield index
