"""Whether a policy still looks around."""

from __future__ import annotations

import pytest

from arl_core.diversity import diversity
from arl_core.edit import canonical_diff
from arl_core.records import Experiment

SOURCE = "DEPTH = 4\nWIDTH = 64\n\n\ndef loss(x):\n    return x\n"


def moved(index: int, old: str, new: str, status: str = "discarded") -> Experiment:
    source = SOURCE.replace(old, new)
    return Experiment("c", index, status, source=source, diff=canonical_diff(SOURCE, source))


DEPTH = moved(1, "DEPTH = 4", "DEPTH = 5")
WIDTH = moved(2, "64", "96")
LOSS = moved(3, "return x", "return x * x")
AGAIN = moved(4, "DEPTH = 4", "DEPTH = 5", "duplicate")
BROKEN = Experiment("c", 5, "rejected")


def test_levers_touched_equally_often_count_whole():
    assert diversity([DEPTH, WIDTH, LOSS]) == {"proposals_new": 1.0, "proposals_levers": pytest.approx(3.0)}


def test_a_policy_that_always_moves_the_same_lever_has_one():
    assert diversity([DEPTH, moved(2, "DEPTH = 4", "DEPTH = 6"), moved(3, "DEPTH = 4", "DEPTH = 7")])[
        "proposals_levers"
    ] == pytest.approx(1.0)


def test_a_rare_lever_counts_for_a_part():
    told = diversity([DEPTH, moved(2, "DEPTH = 4", "DEPTH = 6"), moved(3, "DEPTH = 4", "DEPTH = 7"), WIDTH])
    assert 1.0 < told["proposals_levers"] < 2.0


def test_repetitions_and_edits_that_do_not_apply_are_not_new():
    assert diversity([DEPTH, AGAIN, BROKEN, WIDTH]) == {"proposals_new": 0.5, "proposals_levers": pytest.approx(2.0)}


def test_a_policy_that_finds_nothing_new_has_no_lever():
    assert diversity([AGAIN, BROKEN]) == {"proposals_new": 0.0, "proposals_levers": 0.0}


def test_before_the_first_proposal_there_is_nothing_to_say():
    assert diversity([]) == {}
