"""Slots on other nodes: each candidate is a run of the deployment `experiment/node`, taken by whichever worker is free.

The campaign and its nodes share the Prefect server and nothing else: what a node needs travels as flow parameters, what
it found comes back as an artifact (heartbeat.py). A node whose heart stops, or whose process died, has its candidate
scheduled once more; a candidate under which two nodes died counts as crashed, so that it cannot take down a third.
A run that Failed is a node's refusal, of a node that lacks what candidates need. It is not held against the candidate,
which waits for another node; when none of them runs candidates, the campaign ends.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Cancelling, Scheduled

from arl_core.config import CampaignConfig
from arl_core.errors import ConfigError
from flows import wire
from flows.experiment import HOST_DIED
from flows.heartbeat import BEAT, RESULT
from flows.slots import Order, campaign_ended
from frozen_env.contract import Cause, Ending, HostError, RunResult
from frozen_env.runtime.supervisor import OnEvent

POLL_S = 1.0
ATTEMPTS = 2  # a candidate whose node died is scheduled once more
REFUSALS = 2  # of a candidate in a row, while no other is training or delivered, end the campaign
REFUSED_PAUSE_S = 30.0  # a node that refuses is free at once: without a pause it would take the same candidate again
SERVER_LIMIT_S = 1800.0  # a server that is away for longer ends the campaign, which can be resumed
PENDING_SILENCES = 3  # a process that a worker starts needs longer to begin than to beat
WAITING_WORDS_S = 60.0  # after this without a worker, say so
PAGE = 100  # flow runs asked about in one request

PHASES = {"started": "training", "scoring": "scoring"}  # what a heart last told, as a display says it
LIVE_STATES = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass
class _Past:
    """What befell a candidate so far. Its refusals are counted anew, from `refused_s` on, with every result of any node."""

    attempts: int = 1
    deaths: int = 0
    refusals: int = 0
    refused_s: float = 0.0
    delivered: int = 0  # results that the campaign had at the last refusal

    def refuse(self, delivered: int) -> None:
        if self.refusals == 0 or self.delivered != delivered:
            self.refusals, self.refused_s, self.delivered = 0, time.monotonic(), delivered
        self.refusals += 1


@dataclass
class _Job:
    """One candidate under way. beat_s is when its heart was last seen to beat, on our monotonic clock."""

    order: Order
    on_event: OnEvent
    future: Future[RunResult]
    flow_run_id: UUID
    past: _Past = field(default_factory=_Past)
    beat: int = 0
    beat_s: float = field(default_factory=lambda: time.monotonic())
    scheduled_s: float = field(default_factory=lambda: time.monotonic())
    began: bool = False
    trains: bool = False  # its heart told that the candidate has started
    pending_s: float | None = None
    told_waiting: bool = False


class NodeSlots:
    """`count` candidates at a time on the workers of a deployment.

    Raises ConfigError when the deployment is not there, HostError when the server is away for too long.
    """

    def __init__(
        self, config: CampaignConfig, campaign_id: str, environment_digest: str, say: Callable[[str], None]
    ) -> None:
        self.count = config.parallel
        self.environment_digest = environment_digest
        self._environment = config.environment.to_json()
        self._silence_s = config.nodes.silence_s
        self._patience_s = 2 * config.environment.run_limit_s  # a node that is well delivers something in that time
        self._campaign_id = campaign_id
        self._tag = f"campaign:{campaign_id}"
        self._say = say
        self._jobs: dict[UUID, _Job] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._server_away = False
        self._back_s = -math.inf  # when the server was last away until
        self._delivered = 0  # results that nodes brought
        self._deployment_id = self._ask(lambda client: _deployment(client, config.nodes.deployment))
        self._ask(self._cancel_all)  # what a killed campaign left behind
        self._thread = threading.Thread(target=self._watch, name="nodes", daemon=True)
        self._thread.start()

    def run(self, order: Order, on_event: OnEvent) -> RunResult:
        return self.submit(order, on_event).result()

    def submit(self, order: Order, on_event: OnEvent) -> Future[RunResult]:
        future: Future[RunResult] = Future()
        self._schedule(order, on_event, future, _Past())
        return future

    def close(self) -> None:
        """End what still runs: whoever waits for it is told at once, workers end cancelled runs within seconds."""
        with self._guard:  # from here on no job is added
            self._stop.set()
            left = list(self._jobs.values())
        for job in left:
            _fail(job.future, campaign_ended(job.order))
        self._thread.join(timeout=10 * POLL_S)
        if left:
            try:
                with get_client(sync_client=True) as client:
                    self._cancel_all(client)
            except Exception as error:
                log.warning("runs on nodes could not be cancelled, they end by themselves: %s", error)

    # --- scheduling ---------------------------------------------------------------------------------------------------

    def _schedule(
        self, order: Order, on_event: OnEvent, future: Future[RunResult], past: _Past, pause_s: float = 0.0
    ) -> None:
        if self._stop.is_set():
            raise campaign_ended(order)
        parameters = {
            "source": order.source,
            "environment": self._environment,
            "environment_digest": self.environment_digest,
            "seed": order.seed,
            "rule": order.rule,
            "snapshot": wire.pack(order.snapshot),
        }
        state: State[Any] = Scheduled(
            scheduled_time=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=pause_s)
        )
        run = self._ask(
            lambda client: client.create_flow_run_from_deployment(
                self._deployment_id,
                parameters=parameters,
                state=state,
                name=f"{self._campaign_id}-{order.index}" + (f"-attempt-{past.attempts}" if past.attempts > 1 else ""),
                tags=[self._tag],
            )
        )
        with self._guard:
            closed = self._stop.is_set()
            if not closed:
                self._jobs[run.id] = _Job(order, on_event, future, run.id, past)
        if closed:  # meanwhile: close() may have cancelled before this run was there
            self._ask(lambda client: _cancel(client, run))
            raise campaign_ended(order)

    def _cancel_all(self, client: SyncPrefectClient) -> None:
        """Cancel every live run of this campaign: with a process by its worker, without one at once."""
        tags = FlowRunFilterTags(all_=[self._tag])
        states = FlowRunFilterState(type=FlowRunFilterStateType(any_=LIVE_STATES))
        asked: list[UUID] = []  # each run is asked once, so that one that stays alive cannot keep us here
        while True:
            others = FlowRunFilter(tags=tags, state=states, id=FlowRunFilterId(not_any_=asked))
            page = client.read_flow_runs(flow_run_filter=others, limit=PAGE)
            if not page:
                return
            for run in page:
                _cancel(client, run)
            asked += [run.id for run in page]

    # --- watching -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            with self._guard:
                jobs = list(self._jobs.values())
            if not jobs:
                continue
            try:
                for start in range(0, len(jobs), PAGE):
                    self._look_at(jobs[start : start + PAGE])
            except Exception as error:
                for job in jobs:
                    self._done(job)
                    _fail(job.future, error)

    def _look_at(self, jobs: Sequence[_Job]) -> None:
        ids = [job.flow_run_id for job in jobs]
        runs = {
            run.id: run
            for run in self._ask(
                lambda client: client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
            )
        }
        beats = self._ask(lambda client: _artifacts(client, ids, BEAT))
        for job in jobs:
            run, data = runs.get(job.flow_run_id), beats.get(job.flow_run_id)
            self._hear(job, data)
            if run is None or run.state is None:
                self._lost(job, "its flow run was deleted")
            elif run.state.is_completed():
                self._take(job)
            elif run.state.is_final():
                self._ended(job, run)
            elif run.state.is_running():
                if not job.began:  # it may have waited long for a worker: its heart counts from now on
                    job.began, job.beat_s = True, time.monotonic()
                if time.monotonic() - job.beat_s > self._silence_s:
                    self._ask(functools.partial(_cancel, run=run, at_once=True))
                    self._lost(job, f"its node was silent for {self._silence_s:g} s")
            else:
                self._waiting(job, run)

    def _hear(self, job: _Job, data: dict[str, Any] | None) -> None:
        if data is None or data["beat"] == job.beat:
            return
        job.beat, job.beat_s = data["beat"], time.monotonic()
        job.trains = "startup_s" in data
        job.on_event({**data, "event": "beat", "phase": PHASES.get(data.get("event", ""), "starting")})

    def _waiting(self, job: _Job, run: FlowRun) -> None:
        """A run without a worker waits as long as it takes; one that a worker took and never began has lost it."""
        now_s = time.monotonic()
        if run.state is not None and run.state.is_pending():
            job.pending_s = job.pending_s or now_s
            if now_s - job.pending_s > PENDING_SILENCES * self._silence_s:
                self._ask(lambda client: _cancel(client, run, at_once=True))
                self._lost(job, "its worker took it and did not begin")
        elif now_s - job.beat_s > WAITING_WORDS_S and not job.told_waiting:
            job.told_waiting = True
            self._say(f"experiment {job.order.index} has waited {WAITING_WORDS_S:g} s for a worker; is one running?")

    def _take(self, job: _Job) -> None:
        """Hand the result over and take it off the server: the memory has it from now on."""
        ids = [job.flow_run_id]
        data = self._ask(lambda client: _artifacts(client, ids, RESULT)).get(job.flow_run_id)
        try:
            result = RunResult.from_json(wire.unpack(data or {}))
        except (ValueError, TypeError, KeyError) as error:
            self._lost(job, f"its result cannot be read ({error})")
            return
        if result.environment_digest != self.environment_digest:
            self._lost(job, f"its result is of frozen environment {result.environment_digest}", refused=True)
            return
        self._delivered += 1
        self._ask(lambda client: _forget(client, ids))
        _settle(job.future, result)
        self._done(job)

    def _ended(self, job: _Job, run: FlowRun) -> None:
        assert run.state is not None
        message = (run.state.message or "").strip()
        refused = run.state.is_failed() and HOST_DIED not in message
        self._lost(job, f"{run.state.name}: {message[:300]}", refused)

    def _lost(self, job: _Job, why: str, refused: bool = False) -> None:
        """Schedule the candidate again, unless it has cost two nodes or no node takes it.

        What was lost while the server was away counts for nothing: a process cannot begin without the server. The job
        is done with last: close() tells those that wait for the jobs that it finds.
        """
        self._ask(lambda client: _forget(client, [job.flow_run_id]))
        index, past, counts = job.order.index, job.past, job.scheduled_s >= self._back_s
        past.attempts += counts
        past.deaths += counts and not refused
        if counts and refused:
            past.refuse(self._delivered)
        if past.deaths >= ATTEMPTS:
            reason = f"the node died under it {ATTEMPTS} times; last: {why}"
            digest, seed = self.environment_digest, job.order.seed
            crash = RunResult(Ending.CRASHED, Cause.ABORTED, reason, environment_digest=digest, seed=seed)
            _settle(job.future, crash)
        elif counts and refused and past.refusals >= REFUSALS and not self._another_may_deliver(job):
            refusal = f"nodes refuse experiment {index}: {why}. Mend or stop their workers, then resume"
            _fail(job.future, HostError(refusal))
        else:
            self._say(f"experiment {index} is scheduled again: {why}")
            self._schedule(job.order, job.on_event, job.future, past, REFUSED_PAUSE_S if refused else 0.0)
        self._done(job)

    def _another_may_deliver(self, job: _Job) -> bool:
        """Whether some node seems well: a candidate that others refuse waits for it, as long as two runs take at most."""
        with self._guard:
            trains = any(other.trains for other in self._jobs.values() if other is not job)
        return trains and time.monotonic() - job.past.refused_s < self._patience_s

    def _done(self, job: _Job) -> None:
        with self._guard:
            self._jobs.pop(job.flow_run_id, None)

    # --- the server ---------------------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[SyncPrefectClient], Answer]) -> Answer:
        """Put a question to the server, waiting for it when it is away; hearts are not missed for that time."""
        deadline_s = time.monotonic() + SERVER_LIMIT_S
        pause_s = 0.5
        while True:
            try:
                with get_client(sync_client=True) as client:
                    answer = question(client)
                if self._server_away:
                    self._server_away, self._back_s = False, time.monotonic()
                    self._say("the Prefect server is back")
                    for job in list(self._jobs.values()):
                        job.beat_s = time.monotonic()
                return answer
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
                    raise
                if time.monotonic() > deadline_s or self._stop.is_set():
                    raise HostError(
                        f"the Prefect server does not answer ({error}); start it again, then resume"
                    ) from error
                if not self._server_away:
                    self._server_away = True
                    self._say(f"the Prefect server does not answer, waiting for it ({type(error).__name__})")
            time.sleep(pause_s)
            pause_s = min(5.0, 2 * pause_s)


# A future is settled once: by the thread that watches or by close(), whichever comes first.


def _settle(future: Future[RunResult], result: RunResult) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _fail(future: Future[RunResult], error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _deployment(client: SyncPrefectClient, name: str) -> UUID:
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound as error:
        raise ConfigError(
            f"no deployment {name!r} on the Prefect server {client.api_url}; make it with `prefect deploy --all` "
            "(docs/operations.md), or unset nodes.deployment to run candidates on this machine"
        ) from error


def _artifacts(client: SyncPrefectClient, ids: list[UUID], kind: str) -> dict[UUID, dict[str, Any]]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=ids), type=ArtifactFilterType(any_=[kind]))
    found = client.read_artifacts(artifact_filter=wanted)
    return {one.flow_run_id: one.data for one in found if one.flow_run_id and isinstance(one.data, dict)}


def _forget(client: SyncPrefectClient, ids: list[UUID]) -> None:
    for artifact in client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=ids))
    ):
        try:
            client.delete_artifact(artifact.id)
        except ObjectNotFound:
            continue


def _cancel(client: SyncPrefectClient, run: FlowRun, at_once: bool = False) -> None:
    state: State[Any] = Cancelling() if run.state and run.state.is_running() and not at_once else Cancelled()
    client.set_flow_run_state(run.id, state, force=True)
