"""The flow of flows/experiment.py on a node whose candidates sleep: what bench.scaling deploys as `experiment/node`.

Tests may watch and hold them. ARL_STAND_IN_MARKS names a folder in which each candidate has a file for as long as it runs,
named after its flow run; ARL_STAND_IN_HOLD names a file, and no candidate ends while it is there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import flows.experiment
from bench.stand_ins import SleepingHost
from frozen_env.contract import RunResult

POLL_S = 0.05


class WatchedHost(SleepingHost):
    """A sleeping host that tells when its candidate runs, and lets it end when it may."""

    def run(self, source: str, **named: Any) -> RunResult:
        folder, hold = os.environ.get("ARL_STAND_IN_MARKS"), os.environ.get("ARL_STAND_IN_HOLD")
        mark = Path(folder) / os.environ["PREFECT__FLOW_RUN_ID"] if folder else None
        if mark:
            mark.touch()
        result = super().run(source, **named)
        while hold and Path(hold).exists():
            time.sleep(POLL_S)
        if mark:
            mark.unlink()
        return result


flows.experiment.Host = WatchedHost  # type: ignore[assignment,misc]
experiment = flows.experiment.experiment
