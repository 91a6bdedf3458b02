"""Self-evaluation: forecast a run's final result while it trains, and stop it when it will not beat the incumbent."""

from arl_core.selfeval.curve import Curve
from arl_core.selfeval.forecast import Forecaster, Outlook
from arl_core.selfeval.judge import RULES, Rule, make_judge
from arl_core.selfeval.snapshot import PastRun, Snapshot, is_judged, stands_for

__all__ = [
    "RULES",
    "Curve",
    "Forecaster",
    "Outlook",
    "PastRun",
    "Rule",
    "Snapshot",
    "is_judged",
    "make_judge",
    "stands_for",
]
