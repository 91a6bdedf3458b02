"""The campaign of flows/research.py with candidates that answer at once, as bench.faults deploys it."""

from __future__ import annotations

import flows.slots
from bench.faults_child import AnsweringHost
from flows.research import research

flows.slots.Host = AnsweringHost  # type: ignore[misc]
__all__ = ["research"]
