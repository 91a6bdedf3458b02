"""Where candidates run: slots of this machine, one host process each. Other nodes' slots are in nodes.py."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arl_core.config import CampaignConfig
from flows.blame import NO_GPU, TO_BLAME, GpuLost, check_blame, gpu_names
from flows.under_way import UnderWay
from frozen_env.contract import Cause, HostError, RunResult
from frozen_env.fetch import data_dir
from frozen_env.runtime import gpu_lock
from frozen_env.runtime.supervisor import Host, OnEvent
from tasks.train import train

ABORT_LIMIT_S = 5.0  # a run that was asked to end and does not is killed with its host
SHARED = (
    "warning: the policy and a slot's candidates share GPU {}: they train slower there whenever the policy proposes or learns, "
    "and their values suffer for it. --set parallel={} leaves it to the policy (or policy.offload, policy.device=cpu)"
)


@dataclass(frozen=True)
class Order:
    """One candidate to run. `rule` and `snapshot` are what a stopping verdict needs; `place` is a folder of ours; `blamed` says
    that an edit runs, and not a program that has shown itself sound."""

    index: int
    source: str
    seed: int
    place: Path
    rule: str
    snapshot: dict[str, Any]
    blamed: bool = True


def campaign_ended(order: Order) -> HostError:
    """What whoever waits for a run gets when the slots are closed under it."""
    return HostError(f"the campaign ended while experiment {order.index} ran; resumed, it runs it again")


class Slots(Protocol):
    """Places where candidates run side by side."""

    count: int
    environment_digest: str

    def run(self, order: Order, on_event: OnEvent) -> RunResult:
        """Run one candidate and wait for it. Raises HostError when what surrounds it keeps dying."""

    def submit(self, order: Order, on_event: OnEvent) -> Future[RunResult]:
        """Have one candidate run as soon as a slot is free."""

    def close(self) -> None:
        """End whatever runs, within seconds. Who waits for it gets a HostError and no result: nothing is learned from it."""


class LocalSlots:
    """K host processes on this machine. On GPUs each holds one of its own, locked; on a CPU they share the cores.

    Where fewer GPUs answer than there are to be slots, or one is lost on the way, the others go on: `count` falls, and `say` is
    told. Raises HostError when other campaigns hold the GPUs that are there, or when there is none that candidates must have.
    """

    def __init__(self, config: CampaignConfig, count: int, stderr_path: Path) -> None:
        self.count = count
        self.environment_digest = self.sandbox = ""
        self.under_way = UnderWay()
        self._held: list[gpu_lock.HeldGpu] = []
        self._hosts: list[Host] = []
        self._free: queue.SimpleQueue[Host] = queue.SimpleQueue()
        self._flights: set[Future[RunResult]] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._closing = False
        self._counting = threading.Lock()
        self._environment = config.environment
        self.say: Callable[[str], None] = lambda _line: None
        self.notes: list[str] = []  # for `say`, from before there was somebody to tell
        try:
            names = gpu_names(config.environment)
        except HostError:
            if not config.nodes.deployment:
                raise
            names = []  # candidates run on nodes: the host here only says what our frozen environment is
        if names and len(names) < count:
            self.notes.append(f"warning: parallel is {count}, but {len(names)} GPUs answer: going on with those")
            self.count = len(names)
        if config.policy.proposer == "policy" and config.policy.device != "cpu":
            policy_gpus = gpu_lock.seen_here()[:1] if names else []
            names.sort(key=lambda name: name in policy_gpus)  # candidates come last to the policy's
            if 1 < self.count == len(names) and names[-1] in policy_gpus and not config.policy.offload:
                self.notes.append(SHARED.format(names[-1], max(1, self.count - 1)))
        self._alone = self.count == 1
        try:
            for _ in range(self.count):
                gpu = gpu_lock.hold(names) if names else None
                self._held += [gpu] if gpu else []
                host = Host(config.environment, data_dir(), stderr_path, gpu)
                self._hosts.append(host)
                self._free.put(host)
                host.start()
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until every host is warm. Raises what a refusing host raises: ManifestError, DataMissing and so on."""
        for host in self._hosts:
            host.wait_ready()
        self.environment_digest, self.sandbox = self._hosts[0].environment_digest, self._hosts[0].sandbox

    def run(self, order: Order, on_event: OnEvent) -> RunResult:
        """Run one candidate: here when there is one slot, in the pool otherwise, where close() knows of it."""
        return self._run(order, on_event) if self._alone else self.submit(order, on_event).result()

    def _run(self, order: Order, on_event: OnEvent) -> RunResult:
        for last_try in (False, True):
            host = self._free.get()
            keep = True
            try:
                return self._run_on(host, order, on_event)
            except GpuLost as lost:
                if last_try:  # two GPUs were lost under one edit: it carries that as a death, and is not run on a third
                    self.under_way.begin(order)
                    raise
                keep = not self._retire(lost)
                if keep:
                    raise
            finally:
                if keep:
                    self._free.put(host)
        raise AssertionError("a second try returns or raises")

    def _retire(self, lost: GpuLost) -> bool:
        """Give up the slot of a GPU that is lost, so that its candidate runs on another. False for the last one."""
        with self._counting:
            if self.count == 1 or self._closing:
                return False
            self.count -= 1
        self.say(f"warning: {lost} (going on with {self.count} of the slots)")
        return True

    def submit(self, order: Order, on_event: OnEvent) -> Future[RunResult]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="slot")
        context = contextvars.copy_context()  # Prefect's: the thread's task belongs to the campaign's flow run
        future = self._threads.submit(context.run, self._run, order, on_event)
        self._flights.add(future)
        future.add_done_callback(self._flights.discard)
        return future

    def _run_on(self, host: Host, order: Order, on_event: OnEvent) -> RunResult:
        if host.gpu is None and self._environment.device == "cuda":
            raise HostError(NO_GPU)
        if refused := self.under_way.refuses(order):
            return refused
        with self.under_way.turn(order):
            if self._closing:
                raise campaign_ended(order)
            self.under_way.begin(order)
            try:
                result = train(host, order.source, order.seed, order.place, order.rule, order.snapshot, on_event)
            except HostError:  # the host died again and again: of this candidate, unless what it stands on is gone
                try:
                    if self._closing:
                        self.under_way.end(order)
                    else:
                        self._check_blame(order, None, host)
                except HostError:
                    self.under_way.end(order)
                    raise
                raise
            except BaseException:
                self.under_way.end(order)
                raise
            self.under_way.end(order)
        if self._closing and result.cause is Cause.ABORTED:
            raise campaign_ended(order)
        if result.ending in TO_BLAME:
            self._check_blame(order, result, host)
        return result

    def _check_blame(self, order: Order, result: RunResult | None, host: Host) -> None:
        check_blame(f"experiment {order.index}", result, host.gpu, order.place, self._environment)

    def close(self) -> None:
        """End whatever runs and give the GPUs back."""
        self._closing = True
        flights = list(self._flights)
        if flights:
            for host in self._hosts:
                host.abort()
            if wait(flights, timeout=ABORT_LIMIT_S).not_done:
                for host in self._hosts:
                    host.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for host in self._hosts:
            host.close()
        for held in self._held:
            held.close()
