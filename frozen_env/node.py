"""Entry point of a host process: `python -m frozen_env.node SPEC_JSON DATA_DIR`. Joins the runtime with the problem."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

from frozen_env import manifest
from frozen_env.contract import FrozenEnvError
from frozen_env.description import read
from frozen_env.files import join
from frozen_env.runtime.channel import encode, write_all
from frozen_env.runtime.guard import guarded
from frozen_env.runtime.problem import Problem
from frozen_env.spec import EnvironmentSpec


def main() -> int:
    """Be the host until the caller goes away."""
    from frozen_env.runtime.compile_cache import CompileCache  # after the guard has been forked: it stays small
    from frozen_env.runtime.host import serve

    answers = os.dup(1)
    try:
        spec = EnvironmentSpec.from_json(json.loads(sys.argv[1]))
        frozen = manifest.verify()

        def load() -> tuple[Problem, str]:
            from frozen_env.problems import open_problem

            problem, part = open_problem(spec, Path(sys.argv[2]))
            return problem, hashlib.sha256(f"{frozen} {spec.digest()} {part}".encode()).hexdigest()[:16]

        problem = read(spec.problem)
        served = problem.way == "served"
        cache = CompileCache(Path(sys.argv[2]) / "compiled", join(problem.sources())) if served else None
        serve(spec, load, cache, torch=served, files=problem.files)
    except FrozenEnvError as error:
        write_all(answers, encode({"event": "refused", "kind": type(error).__name__, "reason": str(error)}))
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
