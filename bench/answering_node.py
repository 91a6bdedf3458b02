"""A host process whose candidates answer at once: `python -m bench.answering_node SPEC_JSON DATA_DIR`, for bench.faults.

It speaks the protocol of frozen_env.runtime.host. The candidate is a process, which can be killed, that lives for a
moment; its result is a function of the source and the seed. It asks for no verdict: those come when they come.

ARL_STAND_IN_KILLED names candidates (`PROGRAM:SEED`, with commas) that die of SIGKILL by themselves: what a campaign is
compared with whose candidates were killed from outside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time

from arl_core.records import source_hash
from bench.answers import DIGEST, answer
from frozen_env.contract import Cause, Ending, RunResult
from frozen_env.runtime import processes
from frozen_env.runtime.host import Caller
from frozen_env.spec import EnvironmentSpec

CANDIDATE_S = 0.15
KILLED = "ARL_STAND_IN_KILLED"


def main() -> int:
    spec = EnvironmentSpec.from_json(json.loads(sys.argv[1]))
    caller = Caller()
    processes.adopt_orphans()
    try:
        caller.say({"event": "ready", "sandbox": "none", "environment_digest": DIGEST, "pids": [os.getpid()]})
        while (request := caller.next_request()) is not None:
            order = request["run"]
            result = run(spec, str(order["source"]), int(order["seed"]))
            caller.say({"event": "result", "result": result.to_json()})
    except BrokenPipeError:
        return 1
    finally:
        processes.kill_all_descendants()
    return 0


def run(spec: EnvironmentSpec, source: str, seed: int) -> RunResult:
    doomed = f"{source_hash(source)}:{seed}" in os.environ.get(KILLED, "").split(",")
    host = os.getpid()
    pid = os.fork()
    if pid == 0:
        processes.die_with_parent(host)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(CANDIDATE_S)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    result = answer(source, seed, spec.budget_s)
    if os.WIFSIGNALED(status):
        reason = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return dataclasses.replace(
            result, ending=Ending.CRASHED, cause=Cause.SIGNAL, reason=reason, score=None, reports=()
        )
    return result


if __name__ == "__main__":
    sys.exit(main())
