"""PPO's arithmetic: advantages and losses as pure functions, each returning (loss, metrics) where it is a loss.

Legend of shapes: N free tokens of a batch, all edits one after another; F free tokens of one edit; V vocabulary.

Sources: [S17] Schulman et al. 2017, Proximal Policy Optimization; [S16] Schulman et al. 2016, Generalized Advantage
Estimation; [H22] Huang et al. 2022, The 37 Implementation Details of PPO, and cleanrl's ppo.py; [K] Schulman 2020,
Approximating KL Divergence.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, float]
FLOOR = -1e9  # log of "not allowed"; finite, because 0 · (−∞) is NaN in an entropy


def gae(reward: float, values_F: Tensor, gamma: float, lam: float) -> Tensor:
    """Return the advantages of one edit's decisions, [F], for a reward that comes after the last one.

    values_F is the baseline before each decision, in the reward's units. The episode ends with the edit, so nothing is
    bootstrapped. With gamma = lam = 1 it is reward − values_F. An empty edit gives an empty tensor. Source: [S16] eq.
    16.
    """
    advantages_F = torch.zeros_like(values_F)
    running, following = 0.0, 0.0
    for t in reversed(range(len(values_F))):
        arrives = reward if t == len(values_F) - 1 else 0.0
        delta = arrives + gamma * following - float(values_F[t])
        running = delta + gamma * lam * running
        following = float(values_F[t])
        advantages_F[t] = running
    return advantages_F


def policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip: float
) -> tuple[Tensor, Metrics]:
    """Return the clipped surrogate, averaged over tokens, to be minimised. Source: [S17] eq. 7, [H22] detail 8.

    Metrics as cleanrl names them: old_approx_kl (k1 of [K]), approx_kl (k3, never negative), clipfrac, ratio_max.
    """
    logratio_N = logprobs_N - old_logprobs_N
    ratio_N = logratio_N.exp()
    unclipped_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    loss = torch.max(unclipped_N, clipped_N).mean()
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.item(),
            "old_approx_kl": (-logratio_N).mean().item(),
            "approx_kl": approx_kl(logratio_N),
            "clipfrac": ((ratio_N - 1).abs() > clip).float().mean().item(),
            "ratio_max": ratio_N.max().item(),
        }
    return loss, metrics


def approx_kl(logratio_N: Tensor) -> float:
    """Return the mean of (ratio − 1) − logratio, nats per token: k3 of [K], never negative. NaN for an empty tensor."""
    return float((logratio_N.exp() - 1 - logratio_N).mean())


def value_loss(values_N: Tensor, returns_N: Tensor) -> tuple[Tensor, Metrics]:
    """Return half the mean squared error. Not clipped: it does not help (Andrychowicz et al. 2021)."""
    loss = 0.5 * (values_N - returns_N).square().mean()
    return loss, {"value_loss": loss.item()}


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """Return 1 − Var(returns − values) / Var(returns); 0.0 without any, or when they hardly vary (cleanrl says NaN)."""
    if len(returns_N) == 0 or float(spread := returns_N.var(unbiased=False)) < 1e-6:
        return 0.0
    return float(1 - (returns_N - values_N).var(unbiased=False) / spread)


def masked(logits_NV: Tensor, allowed_NV: Tensor, temperature: float | Tensor) -> Tensor:
    """Return float32 logits of the distribution that was sampled from: tempered, and FLOOR where not allowed.

    The temperature is one number, or one for each token, [N, 1].
    """
    return (logits_NV.float() / temperature).masked_fill(~allowed_NV, FLOOR)


def masked_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """Return KL(policy || reference) at each token, [N], exactly: the sum over the allowed tokens.

    Both arguments come from `masked` with the same mask, so what is not allowed adds nothing.
    """
    logp_NV = logits_NV.log_softmax(-1)
    return (logp_NV.exp() * (logp_NV - reference_NV.log_softmax(-1))).sum(-1)
