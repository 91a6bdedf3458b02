"""How much of the campaign's error one candidate may use.

The levels of all candidates that are tested sum to at most 1 − confidence, whatever is found on the way and however long the
campaign goes on. So by the union bound the chance that a campaign promotes *anything* that is not better than the
incumbent of its time is at most that, also when it is extended, and also when better candidates were found before.

A campaign may go on night after night, so the levels must not depend on where it is thought to end: a plan that spends nearly
all by the end of each night leaves a fifteenth of it to the next one, and nothing can be confirmed after the fourth. With a
tests expected in a night, k tests leave the share a / (k + a): half of the error goes to the first night, a sixth to the
second, 1 / n(n + 1) to the n-th.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TESTS_PER_EXPERIMENT = (
    0.12  # candidates that are level and still ask for a second look (bench.confirmation, pure noise)
)
FEWEST_TESTS = 2.0  # a short campaign's first test gets a third
LEAST_LEFT = 1e-12  # rounding must not leave less than nothing


def next_level(confidence: float, spent: Sequence[float], planned: int) -> float:
    """Return the level of the next candidate's test, above 0; `spent` are those of the tests begun before.

    `planned`: experiments of one start of the campaign. Raises ValueError for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence!r}")
    left = max(1 - confidence - math.fsum(spent), LEAST_LEFT)
    return left / (len(spent) + 1 + max(FEWEST_TESTS, TESTS_PER_EXPERIMENT * planned))
