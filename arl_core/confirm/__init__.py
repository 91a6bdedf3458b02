"""Is a candidate better than the incumbent, or was its seed? Pure decisions from numbers (docs/confirmation.md).

noise.py knows how far apart two runs of one file are, paired.py judges a candidate's paired re-runs, spending.py shares the
campaign's error out among its candidates, plan.py says which run comes next. No input or output, no clock, no random number.
"""

from arl_core.confirm.noise import Noise, moderated, pooled, worth_a_second_look
from arl_core.confirm.paired import Decision, Judgement, PairedTest
from arl_core.confirm.plan import Arm, Run, next_runs, paired_gains, seeds_in_order
from arl_core.confirm.spending import next_level

__all__ = [
    "Arm",
    "Decision",
    "Judgement",
    "Noise",
    "PairedTest",
    "Run",
    "moderated",
    "next_level",
    "next_runs",
    "paired_gains",
    "pooled",
    "seeds_in_order",
    "worth_a_second_look",
]
