"""A campaign's second looks with made-up runs and a real memory, for tests of what is run and what a kill costs."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import flows.confirm as module
from arl_core.outcome import settle
from arl_core.records import Campaign, Experiment, State
from arl_core.second_look import reference
from flows.costs import Costs
from flows.session import Session
from flows.slots import Order
from frozen_env.contract import Cause, Ending, RunResult, Score, Status

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGN = Campaign("c", "embedded", {}, "digest", 0, "2026-11-24T00:00:00+00:00", "language_model")
WOBBLE = dict(enumerate((0.0, 0.01, -0.01, 0.004, -0.006, 0.002, -0.004, 0.0, 0.001, 0.003, -0.002, 0.005)))


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it, nothing is tidied."""


class MadeUpHost:
    """Answers runs from a table: value of a source, plus a wobble of the seed that differs between sources."""

    count = 1

    def __init__(self, values: dict[str, float | None], die_at: int | None = None) -> None:
        self.values, self.die_at, self.runs = values, die_at, list[tuple[str, int]]()
        self.fails, self.cheats = set[tuple[str, int]](), set[tuple[str, int]]()

    def run(self, order: Order, _on_event: Any = None) -> RunResult:
        source, seed = order.source, order.seed
        if self.die_at is not None and len(self.runs) == self.die_at:
            raise Killed
        self.runs.append((source, seed))
        value = self.values[source]
        if (value is None and seed) or (source, seed) in self.fails:
            return RunResult(Ending.CRASHED, reason="crashed on this seed")
        if (source, seed) in self.cheats:
            return RunResult(Ending.REJECTED, Cause.LOOKAHEAD, "the logits of the past change with the future")
        wobble = WOBBLE[seed] if source == "base" else -0.5 * WOBBLE[seed]
        return RunResult(Ending.FINISHED, score=Score("val_bpb", (value or 1.0) + wobble, "lower", 1, 3, 0.1, 0.1, 0.0))

    def submit(self, order: Order, on_event: Any) -> Future[RunResult]:
        done: Future[RunResult] = Future()
        done.set_result(self.run(order, on_event))
        return done


def first_run(source: str) -> Order:
    return Order(0, source, 0, Path("unused"), "none", {})


def seed_experiment(session: Session) -> Experiment:
    """Experiment 0 with its noise floor, committed."""
    costs = Costs(None)
    result = module.paid_for(session, "base") or session.slots.run(first_run("base"), print)
    outcome = settle(result, None, "lower")
    fields = module.measure_floor(session, "base", "base", result, outcome, costs)
    assert result.score is not None
    known = {"source": "base", "source_hash": "base", "metric": "val_bpb", "value": result.score.value}
    experiment = Experiment("c", 0, Status.KEPT, **(known | fields))
    session.memory.commit_iteration(experiment, State())
    return experiment


def look(session: Session, source: str, index: int = 1) -> module.Look:
    """A candidate's first run and second look."""
    incumbent = session.memory.incumbent("c")
    assert incumbent is not None
    result = module.paid_for(session, source) or session.slots.run(first_run(source), print)
    outcome = settle(result, reference(incumbent), "lower")
    return module.second_look(session, index, source, source, result, outcome, incumbent, Costs(None))
