"""The campaign of flows/research.py with candidates that answer at once, as bench.faults deploys it."""

from __future__ import annotations

import flows.slots
import flows.under_way
from bench.faults_child import AnsweringHost
from flows.research import research

flows.slots.Host = AnsweringHost  # type: ignore[misc]
flows.under_way.MOST_DEATHS = 1000  # as in faults_child.py
__all__ = ["research"]
