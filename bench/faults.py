"""Kill a campaign with SIGKILL, again and again, resume it, and compare its memory with an uninterrupted one's.

python -m bench.faults --kills 50 --json
python -m bench.faults --kills 30 --parallel 3 --json

Every point of the loop is a kill's turn once (before and after each task, inside a checkpoint, inside the commit), then
come random moments of the flow's process, the host process around the candidates (which is their supervisor's other half),
a candidate, a Prefect worker that runs the campaign, and the Prefect server. Training is answered by a stand-in, a function
of source and seed; policy, memory, MLflow, Prefect and the processes are real. Ten experiments a campaign; it is resumed
until it has them all, and then the next one begins. A candidate that is killed alone is a crash, and the policy learns from
it: such a campaign is compared with one in which that candidate dies by itself. Candidates side by side end in any order,
so a campaign with `--parallel` is not compared with another: each experiment must be there once, and each run that had ended and
waited for its second look must have got it.

    kills         SIGKILLs delivered
    resumed       of these, after how many the campaign went on
    lost          experiments that were committed and are not there, or that are missing in the end
    duplicated    experiments that are in the memory or in MLflow twice
    orphans       processes that outlived what started them by more than 10 seconds
    inconsistent  campaigns whose experiments, policy, pending rollouts or MLflow runs differ from the uninterrupted one's; with
                  `--parallel` those in which a run that had ended was never settled, or an MLflow run never ended
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.answering_node import KILLED
from bench.cluster import Cluster, cluster
from frozen_env.runtime import processes

EXPERIMENTS = 10
ORPHAN_LIMIT_S = 10.0
ATTEMPT_LIMIT_S = 900.0
SERVER_AWAY_S = 2.0
SETTINGS = {
    "policy.model": "tiny-random",
    "policy.batch_edits": 2,
    "policy.threads": 1,
    "environment.budget_s": 1.0,
    "environment.check_every_s": 0.25,
    "stopping.rule": "none",
    "confirm.baseline_repeats": 2,
    "confirm.second_look": 0.0,  # five of the ten experiments have one; none would at the default
    "confirm.first_look": 2,
    "confirm.max_reruns": 2,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments of the kills")
    parser.add_argument("--parallel", type=int, default=1, metavar="K", help="candidates side by side (default: 1)")
    parser.add_argument("--server", help="use this Prefect server and never kill it, instead of one of our own")
    parser.add_argument("--json", action="store_true", help="print the figures as the last line")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if options.server:
            os.environ["PREFECT_API_URL"] = options.server
            figures = Faults(Path(folder), options.seed, None, options.parallel).deliver(options.kills)
        else:
            with cluster(Path(folder) / "server") as server:
                os.environ.update(server.environment)
                figures = Faults(Path(folder), options.seed, server, options.parallel).deliver(options.kills)
    if options.json:
        print(json.dumps(figures))
    return 0 if figures["kills"] == figures["resumed"] and not any(figures[name] for name in BAD) else 1


BAD = ("lost", "duplicated", "orphans", "inconsistent")


class Faults:
    """The campaigns of one bench, in children forked from this process: it has imported everything, so they start fast.

    This process adopts orphans: whatever is left of a killed child becomes ours, and is found.
    """

    def __init__(self, folder: Path, seed: int, server: Cluster | None, parallel: int = 1) -> None:
        from bench import fault_points, faults_child, faults_compare

        self.points, self.child, self.compare = fault_points, faults_child, faults_compare
        self.folder, self.server = folder, server
        self.luck = random.Random(seed)
        self.seed, self.parallel = seed, parallel
        self.figures: Counter[str] = Counter()
        self.length_s = 0.0
        self.truths: dict[frozenset[str], dict[str, Any]] = {}
        processes.adopt_orphans()

    def deliver(self, kills: int) -> dict[str, int]:
        """Kill `kills` times and return the figures."""
        began_s = time.monotonic()
        self.truth(frozenset())
        self.length_s = time.monotonic() - began_s
        plan = self.points.plan(kills, self.seed, server=self.server is not None)
        campaign = 0
        while plan:
            campaign += 1
            self.until_finished(self.folder / f"campaign-{campaign}", plan)
        for name in ("kills", "resumed", *BAD):
            self.figures[name] += 0
        return {name: self.figures[name] for name in ("kills", "resumed", *BAD)}

    def truth(self, killed: frozenset[str]) -> dict[str, Any]:
        """Return an uninterrupted campaign, in which these candidates die by themselves."""
        if killed not in self.truths:
            reference = self.folder / f"reference-{len(self.truths)}"
            os.environ[KILLED] = ",".join(sorted(killed))
            pid = self.start(reference, None)
            del os.environ[KILLED]
            if self.wait(pid) != 0:
                raise RuntimeError((reference / "log.txt").read_text()[-4000:])
            self.truths[killed] = self.compare.read(reference)
        return self.truths[killed]

    def until_finished(self, place: Path, plan: list[tuple[str, str, int]]) -> None:
        """Run one campaign to its end, killing as planned; each kill that was delivered leaves the plan."""
        committed: set[int] = set()
        waited: dict[int, str] = {}
        waiting = 0
        for _ in range(4 * EXPERIMENTS + 20):
            blow = plan[0] if plan else None
            pid = self.start(place, blow)
            left_s = self.length_s * (1 - len(committed) / EXPERIMENTS)
            delivered = self.strike(pid, place, blow, left_s) if blow else False
            code = self.wait(pid)
            delivered = delivered or (blow is not None and blow[0] == "flow" and code == -signal.SIGKILL)
            if delivered:
                plan.pop(0)
                waiting += 1
                self.figures["kills"] += 1
            self.count_orphans()
            now = self.compare.committed(place)
            waited |= self.compare.waiting(place)
            self.figures["lost"] += len(committed - now)
            if now - committed or code == 0:
                self.figures["resumed"] += waiting
                waiting = 0
            committed |= now
            if code == 0:
                break
            if not delivered and code != 0:
                print(f"unexpected exit {code}: {(place / 'log.txt').read_text()[-1500:]}", file=sys.stderr, flush=True)
                break
        if self.parallel == 1:
            truth = self.truth(self.compare.killed_candidates(place))
            lost, duplicated, differences = self.compare.against(truth, place)
        else:
            lost, duplicated, differences = self.compare.by_itself(place, EXPERIMENTS, waited)
        self.figures["lost"] += lost
        self.figures["duplicated"] += duplicated
        self.figures["inconsistent"] += bool(differences)
        for line in differences:
            print(f"{place.name}: {line}", file=sys.stderr, flush=True)
        print(f"{place.name}: {self.figures['kills']} kills so far, {len(differences)} differences", flush=True)

    # --- one attempt --------------------------------------------------------------------------------------------------

    def start(self, place: Path, blow: tuple[str, str, int] | None) -> int:
        """Fork a child that begins the campaign at `place`, or resumes it, and dies where `blow` says."""
        place.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        settings = SETTINGS | {"iterations": EXPERIMENTS - 1, "parallel": self.parallel}
        pid = os.fork()
        if pid == 0:
            if blow and blow[0] == "worker":
                assert self.server is not None
                self.child.run_under_worker(place, settings, self.server.port)
            point, occurrence = (blow[1], blow[2]) if blow and blow[0] == "flow" else ("", 0)
            self.child.run(place, settings, point, occurrence)
        return pid

    def strike(self, pid: int, place: Path, blow: tuple[str, str, int], left_s: float) -> bool:
        """Deliver a blow from outside, at a random moment of the seconds left. Return whether it met somebody."""
        target, point, _ = blow
        if point:
            return False  # the child strikes itself
        # A run of the untouched target that fails ends a campaign, and a worker takes seconds to begin with one.
        while target in ("candidate", "worker") and not self.compare.committed(place):
            if _ended(pid):
                return False
            time.sleep(0.3)
        deadline_s = time.monotonic() + self.luck.uniform(0.1, 0.6) * left_s
        while time.monotonic() < deadline_s:
            if _ended(pid):
                return False
            time.sleep(0.01)
        if target == "flow":
            return False if _ended(pid) else _kill(pid)
        if target == "server":
            assert self.server is not None
            self.server.kill_server()
            time.sleep(SERVER_AWAY_S)
            self.server.start_server()
            return True
        while not _ended(pid):
            victims = VICTIMS[target](pid)
            if victims:
                return _kill(victims[0])
            time.sleep(0.005)
        return False

    def wait(self, pid: int) -> int:
        """Reap the child; its exit code, or minus the signal that ended it."""
        deadline_s = time.monotonic() + ATTEMPT_LIMIT_S
        while time.monotonic() < deadline_s:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        _kill(pid)
        os.waitpid(pid, 0)
        raise RuntimeError(f"a campaign hung for {ATTEMPT_LIMIT_S:g} s")

    def count_orphans(self) -> None:
        """What is still below us, apart from the server, has outlived its campaign."""
        deadline_s = time.monotonic() + ORPHAN_LIMIT_S
        while (left := self.strangers()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        for pid in left:
            print(f"orphan {pid}: {_command(pid)}", file=sys.stderr, flush=True)
            self.figures["orphans"] += 1
            _kill(pid)

    def strangers(self) -> list[int]:
        """Living descendants of ours that are not the server's; the dead among our children are reaped."""
        ours = set()
        if self.server and self.server.server:
            ours = {self.server.server.pid, *processes.descendants(self.server.server.pid)}
        left = []
        for pid in processes.descendants(os.getpid()):
            if pid in ours:
                continue
            try:
                reaped, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                reaped = 0
            if not reaped:
                left.append(pid)
        return left


def _hosts(pid: int) -> list[int]:
    return [child for child in processes.children(pid) if "answering_node" in _command(child)]


def _candidates(pid: int) -> list[int]:
    """Those that are alive, and not merely unburied."""
    return [child for host in _hosts(pid) for child in processes.children(host) if _command(child)]


def _workers(pid: int) -> list[int]:
    return [child for child in processes.children(pid) if "prefect worker start" in _command(child)]


VICTIMS = {"host": _hosts, "candidate": _candidates, "worker": _workers}


def _ended(pid: int) -> bool:
    """Whether a child of ours is dead, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
