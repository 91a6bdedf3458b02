"""PPO's arithmetic against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from arl_core.policy.losses import FLOOR, explained_variance, gae, masked, masked_kl, policy_loss, value_loss


def plain_gae(reward: float, values: list[float], gamma: float, lam: float) -> list[float]:
    """Sum of (γλ)^l δ_{t+l}, written as the definition says (Schulman et al. 2016, eq. 16)."""
    n = len(values)
    rewards = [0.0] * (n - 1) + [reward]
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_gae_is_the_discounted_sum_of_deltas(gamma: float, lam: float) -> None:
    values = [0.3, -0.2, 0.9, 0.1, -1.5]
    expected = plain_gae(0.7, values, gamma, lam)
    assert gae(0.7, torch.tensor(values), gamma, lam).tolist() == pytest.approx(expected, abs=1e-6)


def test_gae_without_discount_is_reward_minus_value_and_of_nothing_is_nothing() -> None:
    values = torch.tensor([0.5, -1.0])
    assert gae(2.0, values, 1.0, 1.0).tolist() == pytest.approx([1.5, 3.0])
    assert gae(2.0, torch.zeros(0), 1.0, 1.0).shape == (0,)


def test_policy_loss_is_the_clipped_surrogate_of_a_plain_loop() -> None:
    new, old = [-0.5, -2.0, -1.0, -0.1], [-0.6, -1.0, -1.0, -1.0]
    advantages, clip = [1.0, 1.0, -2.0, -1.0], 0.2
    ratios = [math.exp(a - b) for a, b in zip(new, old, strict=True)]
    terms = []
    for ratio, advantage in zip(ratios, advantages, strict=True):
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        terms.append(min(ratio * advantage, bounded * advantage))
    loss, metrics = policy_loss(torch.tensor(new), torch.tensor(old), torch.tensor(advantages), clip)
    assert loss.item() == pytest.approx(-sum(terms) / 4, rel=1e-6)
    assert metrics["old_approx_kl"] == pytest.approx(sum(b - a for a, b in zip(new, old, strict=True)) / 4, rel=1e-5)
    assert metrics["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, rel=1e-5)
    assert metrics["clipfrac"] == pytest.approx(sum(abs(r - 1) > clip for r in ratios) / 4)
    assert metrics["ratio_max"] == pytest.approx(max(ratios), rel=1e-6)


def test_a_clipped_token_gives_no_gradient() -> None:
    new = torch.tensor([0.0, -3.0], requires_grad=True)
    loss, _ = policy_loss(new, torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 1.0]), 0.2)
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, -0.5])


def test_value_loss_is_half_the_mean_squared_error() -> None:
    loss, metrics = value_loss(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    assert loss.item() == metrics["value_loss"] == pytest.approx(0.5 * (1 + 4) / 2)


def test_explained_variance_is_one_for_the_truth_and_zero_where_nothing_varies() -> None:
    truth = torch.tensor([1.0, -1.0, 2.0])
    assert explained_variance(truth, truth) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(3), truth) == pytest.approx(0.0)
    assert explained_variance(truth, torch.ones(3)) == 0.0


def test_entropy_and_kl_see_the_allowed_tokens_only() -> None:
    from trl.trainer.utils import entropy_from_logits

    allowed = torch.tensor([[True, True, False, False]])
    logits = masked(torch.tensor([[2.0, 1.0, 9.0, 9.0]]), allowed, temperature=2.0)
    other = masked(torch.tensor([[0.0, 1.0, -9.0, 9.0]]), allowed, temperature=2.0)
    p, q = [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))], [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))]
    assert logits[0, 2].item() == pytest.approx(FLOOR)
    assert entropy_from_logits(logits).item() == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-5)
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert masked_kl(logits, other).item() == pytest.approx(kl, rel=1e-5)
    assert masked_kl(logits, logits).item() == 0.0
