"""How much of the campaign's error one candidate may use.

The levels of all candidates that are tested sum to at most 1 − confidence, whatever is found on the way and however long the
campaign goes on. So by the union bound the chance that a campaign promotes *anything* that is not better than the
incumbent of its time is at most that, also when it is extended, and also when better candidates were found before.
"""

from __future__ import annotations

from collections.abc import Sequence

TESTS_PER_EXPERIMENT = (
    0.12  # candidates that are level and still ask for a second look (bench.confirmation, pure noise)
)


def next_level(confidence: float, spent: Sequence[float], remaining: int) -> float:
    """Return the level of the next candidate's test; `spent` are those of the tests begun before.

    `remaining`: experiments still planned after this one. What is left is shared out evenly among the tests to be expected
    and one share is kept for a campaign that is extended. Raises ValueError when `spent` is more than there is.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence!r}")
    left = 1 - confidence - sum(spent)
    if left <= 0:
        raise ValueError(
            f"levels {list(spent)!r} leave nothing of {1 - confidence:g}: a level was not given by next_level()"
        )
    return left / (2 + TESTS_PER_EXPERIMENT * max(0, remaining))
