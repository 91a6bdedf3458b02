"""How different a campaign's proposals are: whether its policy still looks around, or repeats itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from arl_core.edit import levers_seen_from
from arl_core.records import Experiment
from frozen_env.contract import Status


def diversity(proposals: Sequence[Experiment]) -> dict[str, float]:
    """Return how different these proposals are; {} for none. Needs their sources and diffs.

    `proposals_new` is the share, 0 to 1, whose program applied and had not been tried before. `proposals_levers` is the effective
    number of levers (constants, functions) that these touched: the exponential of the Shannon entropy, so n for n levers touched
    equally often, and 1 when all touch the same one; 0 when none is new.

    Source: Hill 1973, Diversity and Evenness, order 1, https://doi.org/10.2307/1934352
    """
    if not proposals:
        return {}
    new = [one for one in proposals if is_new(one)]
    touched = Counter(lever for one in new for lever in levers_seen_from(one.source, one.diff))
    return {"proposals_new": len(new) / len(proposals), "proposals_levers": effective_number(touched)}


def is_new(proposal: Experiment) -> bool:
    """Whether the edit made a program that could be run and had not been tried before."""
    return proposal.status not in (Status.REJECTED, Status.DUPLICATE)


def effective_number(counts: Counter[str]) -> float:
    total = counts.total()
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values())) if total else 0.0
