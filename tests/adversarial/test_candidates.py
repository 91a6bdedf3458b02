"""Every hostile candidate ends as the table says, leaves nothing, and succeeds where its defence is off."""

from __future__ import annotations

import pytest

from tests.adversarial.attacks import ALL, Attack


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_a_hostile_candidate_ends_as_it_must(attack: Attack, guarded) -> None:
    result = guarded(attack.source)
    assert (result.ending, result.cause) == (attack.ending, attack.cause), result.reason
    assert attack.words in result.reason
    assert result.score is None


@pytest.mark.parametrize("attack", ALL, ids=str)
def test_the_same_candidate_succeeds_where_its_defence_is_off(attack: Attack, unguarded) -> None:
    result = unguarded(attack.source)
    assert attack.unguarded in f"{result.ending} {result.cause} {result.reason}", result.log_tail
