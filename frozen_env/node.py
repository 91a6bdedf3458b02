"""Entry point of a host process: `python -m frozen_env.node SPEC_JSON DATA_DIR`. Joins the runtime with the problem."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from frozen_env import manifest
from frozen_env.contract import FrozenEnvError
from frozen_env.problem.language_model import LanguageModel
from frozen_env.runtime.channel import encode
from frozen_env.runtime.host import serve
from frozen_env.spec import EnvironmentSpec


def main() -> int:
    try:
        spec = EnvironmentSpec.from_json(json.loads(sys.argv[1]))
        frozen = manifest.verify()
        problem = LanguageModel(spec, Path(sys.argv[2]))
        digest = hashlib.sha256(f"{frozen} {spec.digest()} {problem.digest}".encode()).hexdigest()[:16]
        serve(spec, problem, digest)
    except FrozenEnvError as error:
        sys.stdout.buffer.write(encode({"event": "refused", "kind": type(error).__name__, "reason": str(error)}))
        sys.stdout.buffer.flush()
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
