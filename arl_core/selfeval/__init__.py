"""Self-evaluation: forecast a run's final result while it trains, and stop it when it will not beat the incumbent."""

from arl_core.selfeval.curve import Curve
from arl_core.selfeval.forecast import Forecaster, Outlook
from arl_core.selfeval.judge import RULES, Rule, make_judge
from arl_core.selfeval.snapshot import PastRun, Snapshot

__all__ = ["RULES", "Curve", "Forecaster", "Outlook", "PastRun", "Rule", "Snapshot", "make_judge"]
