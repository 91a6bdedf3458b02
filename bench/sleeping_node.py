"""The flow of flows/experiment.py on a node whose candidates sleep: what bench.scaling deploys as `experiment/node`."""

from __future__ import annotations

import flows.experiment
from bench.stand_ins import SleepingHost

flows.experiment.Host = SleepingHost  # type: ignore[assignment,misc]
experiment = flows.experiment.experiment
