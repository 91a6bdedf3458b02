"""The PPO update, from rollouts and rewards to an optimizer step and its metrics.

Implementation details, each with its source. [H22]: Huang et al. 2022, The 37 Implementation Details of PPO (cleanrl);
[S17]: Schulman et al. 2017; [S16]: Schulman et al. 2016; [Z19]: Ziegler et al. 2019; [H16]: van Hasselt et al. 2016.

 1. One edit is one episode: the reward comes at its last decision, γ = 1, λ = 1. At λ = 0.95 the choice of the line,
    some 60 decisions earlier, would see 5 % of the credit. [S16] section 3
 2. A step of the episode is a *free* token. Tokens that the grammar forces are no decisions: log-probability 0, and
    outside of every average.
 3. Rewards are centred and scaled by running statistics over edits (the idea of PopArt [H16]), from before this batch;
    only the first batch is measured by itself. The value head then corrects the baseline, token by token.
 4. Advantages are scaled across edits and never whitened over tokens: all tokens of an edit keep the sign of its
    outcome up to the value head's opinion. (Departs from [H22] detail 7: that pushes half its tokens down.)
 5. Ratios are taken under the sampling masks and temperature. Where the present weights sampled, their denominator is the
    log-probability that the learner's own first pass gives (as verl and TRL's GRPO do): in float32 that is what was sampled,
    to 1e-4; in bfloat16 a step by step cache rounds differently, by 0.05 nats a token, which would spend a part of the
    clip range on noise. `sampler_kl` tells.
 6. Clipped surrogate, clip 0.2 [S17 eq. 7]; mean over all free tokens of the batch, so an edit weighs by its decisions.
 7. Value loss 0.5 · MSE, coefficient 0.5, not clipped; its gradient stops at the hidden state; a step size of its own.
 8. Entropy bonus 0.01 [H22 detail 10] under the masks, over free tokens. On collapse, below `ENTROPY_FLOOR` of its
    level at the start, the coefficient doubles with each update up to 32 times; above, it halves back.
 9. KL to the warm-started reference (adapter off), exact over the allowed tokens of each decision, a loss term ([Z19]: in the
    reward). Its gradient and the entropy's are those of single decisions: how an earlier token changes which decisions come
    is left out, and decisions that older weights reached are not weighted.
10. Several epochs over the whole batch as one minibatch; gradients accumulate over groups of equal prompts.
11. An epoch that finds the policy further than target_kl from where *this update* began takes no step and ends it
    (Stable-Baselines3 does so too). `update_kl` is that distance: ratios of off-policy edits (13) divide by older weights'
    log-probabilities, and their age would end an update before its first step.
12. Adam with eps 1e-5 [H22 detail 3], no annealing (weeks have no end), gradient norms clipped at 0.5 [H22 detail 11],
    adapter and head apart.
13. Where older weights sampled, the ratio's denominator is what they gave: the sampler's own log-probabilities for a stale
    rollout (proposed before the last update, as slots side by side bring), those of its first update for a reused one. So
    the ratio corrects for the age, within the clip. One that drifted beyond reuse_kl, however old, rests: a large ratio
    under a bad outcome is what the clip does not bound.
14. A batch whose loss or gradient is not finite, in whichever epoch, changes nothing and says so (`skipped`): adapter, head
    and Adam's state, a few MB, are copied before and put back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from arl_core.policy.losses import Metrics, approx_kl, explained_variance, gae, masked_kl, policy_loss, value_loss
from arl_core.policy.network import Network
from arl_core.policy.rollout import Rollout
from arl_core.policy.sampler import group_equal
from arl_core.policy.settings import PolicySettings

ENTROPY_FLOOR = 0.5  # the one collapse on record went to 0.38; batches of four vary by a fifth
ENTROPY_BOOST_MAX = 32.0
ENTROPY_START_UPDATES = 4  # updates that define "the level at the start"


@dataclass
class Statistics:
    """What the update remembers between batches: the reward's running mean and variance, the entropy's level."""

    edits: int = 0
    mean: float = 0.0
    variance: float = 1.0
    updates: int = 0
    entropy_start: float = 0.0
    entropy_boost: float = 1.0
    version: int = 0  # updates that changed the policy: which weights sampled a rollout

    def begin(self, rewards: Sequence[float]) -> None:
        """Let the very first batch be its own measure; later ones are measured by those before."""
        if self.edits == 0:
            self.mean, self.variance = float(np.mean(rewards)), float(np.var(rewards))

    def scaled(self, reward: float, floor: float) -> float:
        """Return a reward in standard deviations (at least `floor`) from the running mean."""
        return (reward - self.mean) / max(math.sqrt(self.variance), floor)

    def absorb(self, rewards: Sequence[float], horizon: int) -> None:
        """Move mean and variance towards new rewards, each edit weighing 1/n at first and 1/horizon for good."""
        for reward in rewards:
            self.edits += 1
            weight = max(1 / self.edits, 1 / horizon)
            difference = reward - self.mean
            self.mean += weight * difference
            self.variance = (1 - weight) * (self.variance + weight * difference**2)

    def watch_entropy(self, entropy: float) -> None:
        """Answer a collapse: double the bonus while the entropy is under its floor, halve it back otherwise."""
        self.updates += 1
        if self.updates <= ENTROPY_START_UPDATES:
            self.entropy_start += (entropy - self.entropy_start) / self.updates
            return
        low = entropy < ENTROPY_FLOOR * self.entropy_start
        self.entropy_boost = min(max(self.entropy_boost * (2.0 if low else 0.5), 1.0), ENTROPY_BOOST_MAX)


@dataclass
class _Edit:
    """A rollout's constants during one update; all [F] over its free tokens."""

    rollout: Rollout
    actions_F: Tensor
    old_logprobs_F: Tensor
    advantages_F: Tensor
    returns_F: Tensor
    reused: bool
    age: int  # updates that changed the policy since it was sampled; 0 for a reused one, whose ratios are its first update's
    resting: bool = False
    drift_kl: float = 0.0  # how far the present weights are from its denominator, nats per token
    reference_FV: Tensor | None = None
    begun_logprobs_F: Tensor | None = None  # under the weights that this update began with

    @property
    def off_policy(self) -> bool:
        return self.reused or self.age != 0


@dataclass
class _Sums:
    """Metrics averaged over tokens, group by group."""

    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    largest_ratio: float = 0.0

    def add(self, metrics: Metrics, tokens: int) -> None:
        self.tokens += tokens
        self.largest_ratio = max(self.largest_ratio, metrics.get("ratio_max", 0.0))
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * tokens

    def means(self) -> Metrics:
        means = {name: total / max(self.tokens, 1) for name, total in self.sums.items()}
        return {**means, "ratio_max": self.largest_ratio}


def update(
    network: Network,
    optimizer: torch.optim.Optimizer,
    statistics: Statistics,
    fresh: Sequence[tuple[Rollout, float]],
    reused: Sequence[tuple[Rollout, float]],
    settings: PolicySettings,
) -> tuple[Metrics, list[Rollout]]:
    """Improve the policy on one batch; return every term (docs/metrics.md) and the fresh rollouts as the learner sees them.

    Rewards must be finite. The returned rollouts carry the learner's log-probabilities: what a later reuse divides by.
    """
    rewards = [reward for _, reward in fresh]
    edits = _prepare([*fresh, *reused], len(fresh), statistics, network, settings)
    metrics: Metrics = {"epochs_done": 0.0, "skipped": 0.0}
    if edits:
        restore = _snapshot(optimizer)
        try:
            metrics = _epochs(network, optimizer, statistics, edits, settings, restore)
        except torch.OutOfMemoryError:  # it may be tried again, from the beginning
            optimizer.zero_grad(set_to_none=True)
            restore()
            raise
    statistics.absorb(rewards, settings.reward_horizon)
    statistics.version += metrics["epochs_done"] > 0
    if "entropy" in metrics:
        statistics.watch_entropy(metrics["entropy"])
    terms = {
        **metrics,
        **_staleness(edits),
        "reward_batch_mean": float(np.mean(rewards)),
        "reward_mean": statistics.mean,
        "reward_std": math.sqrt(statistics.variance),
        "entropy_coef": settings.entropy_coef * statistics.entropy_boost,
        "edits": float(len(fresh)),
        "edits_reused": float(sum(e.reused and not e.resting for e in edits)),
    }
    seen = {id(e.rollout): _as_learned(e) for e in edits if not e.reused}
    return terms, [seen.get(id(rollout), rollout) for rollout, _ in fresh]


def _staleness(edits: Sequence[_Edit]) -> Metrics:
    """What was proposed before the last update: how much of it, how old, how far off, and how much of it rests."""
    stale = [edit for edit in edits if edit.age and not edit.reused]
    return {
        "edits_stale": float(len(stale)),
        "edits_stale_resting": float(sum(edit.resting for edit in stale)),
        "stale_updates": float(max((edit.age for edit in stale), default=0)),
        "stale_kl": float(np.mean([edit.drift_kl for edit in stale] or [0.0])),
    }


def _as_learned(edit: _Edit) -> Rollout:
    logprobs_T = edit.rollout.logprobs_T.copy()
    logprobs_T[edit.rollout.free_T] = edit.old_logprobs_F.cpu().numpy()
    return replace(edit.rollout, logprobs_T=logprobs_T)


def _prepare(
    pairs: Sequence[tuple[Rollout, float]],
    fresh: int,
    statistics: Statistics,
    network: Network,
    settings: PolicySettings,
) -> list[_Edit]:
    statistics.begin([reward for _, reward in pairs[:fresh]])
    edits = []
    for i, (rollout, reward) in enumerate(pairs):
        free = rollout.free_T
        if not free.any():
            continue
        values_F = torch.from_numpy(rollout.values_T[free]).to(network.device)
        outcome = statistics.scaled(reward, settings.reward_scale_floor)
        advantages_F = gae(outcome, values_F, settings.gamma, settings.gae_lambda)
        edits.append(
            _Edit(
                rollout=rollout,
                actions_F=torch.from_numpy(rollout.completion_ids[free]).to(network.device),
                old_logprobs_F=torch.from_numpy(rollout.logprobs_T[free]).to(network.device),
                advantages_F=advantages_F,
                returns_F=advantages_F + values_F,
                reused=i >= fresh,
                age=0 if i >= fresh else _age(rollout, statistics),
            )
        )
    return edits


def _age(rollout: Rollout, statistics: Statistics) -> int:
    """Updates between sampling and now. 1 at least when other weights sampled, be they newer: a checkpoint was torn."""
    age = statistics.version - rollout.policy_version
    return age if age >= 0 else 1


def _epochs(
    network: Network,
    optimizer: torch.optim.Optimizer,
    statistics: Statistics,
    edits: list[_Edit],
    settings: PolicySettings,
    restore: Callable[[], None],
) -> Metrics:
    groups = [[edits[i] for i in g] for g in group_equal([e.rollout.prompt_ids for e in edits])]
    total = sum(len(e.actions_F) for e in edits)
    with torch.no_grad(), network.reference():
        for group in groups:
            for edit, judged in zip(group, network.judge([e.rollout for e in group]), strict=True):
                edit.reference_FV = judged.logits_FV
    first: Metrics = {}
    metrics: Metrics = {}
    done = 0
    for epoch in range(settings.epochs):
        optimizer.zero_grad(set_to_none=True)
        sums = _Sums()
        for group in groups:
            _accumulate(network, group, total, statistics, settings, sums, first_epoch=epoch == 0)
        metrics = sums.means()
        first = first or metrics
        before, total = total, sums.tokens
        if not total:  # every edit rests
            break
        if total < before:  # some rest: the mean is over the others
            _rescale(optimizer, before / total)
        metrics.update(_clip(optimizer, settings.max_grad_norm))
        if not all(math.isfinite(v) for v in metrics.values()):
            optimizer.zero_grad(set_to_none=True)
            restore()
            return {"epochs_done": 0.0, "skipped": 1.0}
        if metrics["update_kl"] > settings.target_kl:
            break
        optimizer.step()
        done += 1
    optimizer.zero_grad(set_to_none=True)
    taught = [e for e in edits if not e.resting]
    values = torch.cat([torch.zeros(0), *[torch.from_numpy(e.rollout.values_T[e.rollout.free_T]) for e in taught]])
    returns = torch.cat([torch.zeros(0), *[e.returns_F.cpu() for e in taught]])
    # What a reader watches: the last pass over the batch, but entropy and KL to the reference as they were sampled. The last
    # step is after that pass, unless target_kl ended the update: with epochs = 1 every ratio of an on-policy edit is 1. A
    # pass behind the step would read the prompt anew: a fifth of an epoch on a CPU in bfloat16 (25 of 118 s of one core for
    # four edits), more where backward is fast.
    return {
        **metrics,
        **{name: first[name] for name in ("entropy", "kl_ref") if name in first},
        "sampler_kl": float(np.mean([e.drift_kl for e in edits if not e.off_policy] or [0.0])),
        "advantage_abs": float((returns - values).abs().mean()) if total else 0.0,
        "explained_variance": explained_variance(values, returns),
        "tokens": float(total),
        "epochs_done": float(done),
        "skipped": 0.0,
    }


def _accumulate(
    network: Network,
    group: list[_Edit],
    total: int,
    statistics: Statistics,
    settings: PolicySettings,
    sums: _Sums,
    *,
    first_epoch: bool,
) -> None:
    """Add one group's gradient, weighted by its share of the batch's tokens."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    active = [e for e in group if not e.resting]
    if not active:
        return
    losses = []
    for edit, judged in zip(active, network.judge([e.rollout for e in active]), strict=True):
        logprobs_F = selective_log_softmax(judged.logits_FV[None], edit.actions_F[None])[0]
        if first_epoch:
            edit.begun_logprobs_F = logprobs_F.detach()
            edit.drift_kl = approx_kl(edit.begun_logprobs_F - edit.old_logprobs_F)
            if edit.off_policy and not edit.drift_kl <= settings.reuse_kl:  # not a number: rests too
                edit.resting = True
                continue
            if not edit.off_policy:
                edit.old_logprobs_F = edit.begun_logprobs_F
        assert edit.reference_FV is not None
        assert edit.begun_logprobs_F is not None
        surrogate, terms = policy_loss(logprobs_F, edit.old_logprobs_F, edit.advantages_F, settings.clip)
        error, value_terms = value_loss(judged.values_F, edit.returns_F)
        entropy = entropy_from_logits(judged.logits_FV).mean()
        kl = masked_kl(judged.logits_FV, edit.reference_FV).mean()
        loss = (
            surrogate
            + settings.value_coef * error
            - settings.entropy_coef * statistics.entropy_boost * entropy
            + settings.kl_coef * kl
        )
        share = len(edit.actions_F) / total
        losses.append(loss * share)
        terms = {**terms, **value_terms, "entropy": entropy.item(), "kl_ref": kl.item(), "loss": loss.item()}
        terms["update_kl"] = approx_kl(logprobs_F.detach() - edit.begun_logprobs_F)
        sums.add(terms, len(edit.actions_F))
    if losses:
        torch.autograd.backward(torch.stack(losses).sum())


def _snapshot(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Copy the optimizer's parameters and its own state; return what puts them back."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = [parameter.detach().clone() for parameter in parameters]
    state = copy.deepcopy(optimizer.state_dict())

    def restore() -> None:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state)

    return restore


def _rescale(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def _clip(optimizer: torch.optim.Optimizer, limit: float) -> Metrics:
    names = ("grad_norm", "value_grad_norm")
    return {
        name: float(nn.utils.clip_grad_norm_(group["params"], limit))
        for name, group in zip(names, optimizer.param_groups, strict=True)
    }
