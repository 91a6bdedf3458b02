"""Edits that rest, because the policy has drifted too far from what sampled them, weigh nothing in the update."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from arl_core.policy.policy import Policy
from tests.arl_core.policy.conftest import PROMPT, SOURCE

REWARDS = [1.0, -1.0, 0.5, 0.0]


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_others_teach_as_if_those_that_rest_were_not_there(load: Callable[..., Policy], epochs: int) -> None:
    def learned(with_resting: bool) -> dict[str, float]:
        policy = load(epochs=epochs, learning_rate=5e-2, target_kl=100.0, reuse_kl=1e-6)
        stale = policy.propose_many([PROMPT] * 4, [SOURCE] * 4, list(range(4)))
        policy.update(stale, REWARDS)  # the policy moves: what comes of the same rollouts now is far from it
        fresh = policy.propose_many([PROMPT] * 2, [SOURCE] * 2, [7, 8])
        metrics = policy.update(
            [*fresh, *(stale if with_resting else ())], [*REWARDS[:2], *REWARDS][: 6 if with_resting else 2]
        )
        assert metrics["edits_stale_resting"] == (4.0 if with_resting else 0.0)
        assert metrics["epochs_done"] == epochs
        return metrics

    alone, beside = learned(False), learned(True)
    for term in ("tokens", "policy_loss", "grad_norm", "value_grad_norm", "advantage_abs", "explained_variance"):
        assert beside[term] == pytest.approx(alone[term], rel=1e-3), term
