"""Where candidates run: slots of this machine, one host process each. Other nodes' slots are in nodes.py."""

from __future__ import annotations

import contextvars
import queue
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arl_core.config import CampaignConfig
from flows.under_way import UnderWay
from frozen_env.contract import Cause, Ending, HostError, RunResult
from frozen_env.fetch import data_dir
from frozen_env.runtime import gpu_lock
from frozen_env.runtime.supervisor import Host, OnEvent
from frozen_env.spec import EnvironmentSpec
from tasks.train import train

ABORT_LIMIT_S = 5.0  # a run that was asked to end and does not is killed with its host
MIN_FREE_MB = 512  # logs and a policy checkpoint, however little a candidate may write
NO_GPU = (
    "environment.device is cuda, but no GPU answers: see `nvidia-smi`, and whether ARL_GPUS or CUDA_VISIBLE_DEVICES "
    "names one that is there"
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


# --- what a candidate needs of a machine, before it runs and after it crashed ----------------------------------------


def gpu_names(environment: EnvironmentSpec) -> list[str]:
    """Return the GPUs that candidates may use, [] where they run on the CPU.

    Raises HostError when they must have one and none answers: a candidate without a lock and a name would see them all.
    """
    names = gpu_lock.visible() if environment.device != "cpu" else []
    if environment.device == "cuda" and not names:
        raise HostError(NO_GPU)
    return names


def disk_full(folder: Path, environment: EnvironmentSpec | None = None) -> str:
    """Say that what one candidate may write does not fit on the disk of `folder`; '' when it does."""
    most_mb = environment.scratch_limit_mb + environment.submission_limit_mb if environment else 0
    wanted_mb = max(MIN_FREE_MB, most_mb)
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free_mb = shutil.disk_usage(there).free / 2**20
    return f"only {free_mb:.0f} MiB free in {there}, {wanted_mb} wanted" if free_mb < wanted_mb else ""


def check_blame(what: str, gpu: gpu_lock.HeldGpu | None, folder: Path, environment: EnvironmentSpec) -> None:
    """Raise HostError when the GPU or the disk of a candidate that crashed is gone: the crash is not its doing."""
    if gpu is not None and gpu.name not in gpu_lock.visible():
        raise HostError(
            f"GPU {gpu.name} has vanished while {what} ran; it is not counted. See `nvidia-smi` and `dmesg`, then resume"
        )
    if full := disk_full(folder, environment):
        raise HostError(f"{full}, after {what} crashed; it is not counted. Make room, then resume")


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

    Raises HostError when there are fewer free GPUs than slots, or none that candidates must have.
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
        self._environment = config.environment
        try:
            names = gpu_names(config.environment)
        except HostError:
            if not config.nodes.deployment:
                raise
            names = []  # candidates run on nodes: the host here only says what our frozen environment is
        try:
            for _ in range(count):
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
        return self._run(order, on_event) if self.count == 1 else self.submit(order, on_event).result()

    def _run(self, order: Order, on_event: OnEvent) -> RunResult:
        host = self._free.get()
        try:
            return self._run_on(host, order, on_event)
        finally:
            self._free.put(host)

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
            except HostError:  # the host died again and again: perhaps of this candidate
                if self._closing:
                    self.under_way.end(order)
                raise
            except BaseException:
                self.under_way.end(order)
                raise
            self.under_way.end(order)
        if self._closing and result.cause is Cause.ABORTED:
            raise campaign_ended(order)
        if result.ending is Ending.CRASHED:
            check_blame(f"experiment {order.index}", host.gpu, order.place, self._environment)
        return result

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
