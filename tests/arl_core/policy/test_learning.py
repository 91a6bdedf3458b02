"""What an update does to the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from arl_core.policy import ppo
from arl_core.policy.checkpoint import optimizer_tensors
from arl_core.policy.losses import policy_loss
from arl_core.policy.network import Network
from arl_core.policy.policy import Policy
from arl_core.policy.ppo import ENTROPY_FLOOR, ENTROPY_START_UPDATES, Statistics
from arl_core.policy.rollout import UNKNOWN_VERSION, Rollout
from arl_core.policy.tiny import tiny_base
from tests.arl_core.policy.conftest import PROMPT, SOURCE, tiny

Load = Callable[..., Policy]


def edits(policy: Policy, count: int = 4) -> list[Rollout]:
    return policy.propose_many([PROMPT] * count, [SOURCE] * count, list(range(count)))


def logprob(policy: Policy, rollouts: Sequence[Rollout]) -> list[float]:
    """Return each edit's log-probability under the policy as it is now."""
    with torch.no_grad():
        judged = policy.network.judge(rollouts)
    totals = []
    for rollout, says in zip(rollouts, judged, strict=True):
        actions = torch.from_numpy(rollout.completion_ids[rollout.free_T])
        totals.append(float(says.logits_FV.log_softmax(-1).gather(1, actions[:, None]).sum()))
    return totals


@pytest.mark.parametrize("prompt_grad", [False, True])
def test_a_good_edit_becomes_likelier_and_a_bad_one_less_likely(load: Load, prompt_grad: bool) -> None:
    policy = load(learning_rate=3e-3, target_kl=10.0, epochs=4, prompt_grad=prompt_grad)
    rollouts = edits(policy)
    before = logprob(policy, rollouts)
    policy.update(rollouts, [1.0, 0.0, 0.0, -1.0])
    after = logprob(policy, rollouts)
    assert after[0] > before[0] + 0.1
    assert after[3] < before[3] - 0.1


def test_the_first_minibatch_has_ratio_one_and_no_kl(load: Load) -> None:
    policy = load(epochs=1)
    metrics = policy.update(edits(policy), [1.0, -1.0, 0.5, 0.0])
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["old_approx_kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["sampler_kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["clipfrac"] == 0.0
    assert metrics["kl_ref"] == pytest.approx(0.0, abs=1e-6)


def test_all_tokens_of_an_edit_keep_the_sign_of_its_outcome(load: Load) -> None:
    """The detail that breaks with whitening over tokens: with V = 0 a good edit's tokens are all pushed up."""
    from arl_core.policy.ppo import _prepare

    policy = load()
    rollouts = edits(policy, 3)
    prepared = _prepare(
        list(zip(rollouts, [1.0, 0.0, -1.0], strict=True)), 3, policy.statistics, policy.network, policy.settings
    )
    for edit, sign in zip(prepared, (1, 0, -1), strict=True):
        assert torch.equal(edit.advantages_F.sign(), torch.full_like(edit.advantages_F, sign))
        assert edit.advantages_F.unique().numel() == 1


def test_the_gradient_is_that_of_a_plain_mean_over_the_tokens_of_all_edits(load: Load) -> None:
    """Two prompts, edits of unequal length: neither prompts nor edits weigh alike, tokens do."""
    policy = load(value_coef=0.0, entropy_coef=0.0, kl_coef=0.0, max_grad_norm=1e9, epochs=1)
    rollouts = [*edits(policy, 3), *policy.propose_many([PROMPT + "more"], [SOURCE], [7])]
    rewards = [1.0, 0.0, 0.5, -1.0]
    assert len({int(rollout.free_T.sum()) for rollout in rollouts}) > 2
    adapter, head = list(policy.network.adapter_parameters().values()), list(policy.network.head.parameters())
    losses = []
    for rollout, reward in zip(rollouts, rewards, strict=True):
        (says,) = policy.network.judge([rollout])
        actions_F = torch.from_numpy(rollout.completion_ids[rollout.free_T])
        logprobs_F = says.logits_FV.log_softmax(-1).gather(1, actions_F[:, None])[:, 0]
        outcome = (reward - np.mean(rewards)) / np.std(rewards)
        advantages_F = outcome - torch.from_numpy(rollout.values_T[rollout.free_T])
        losses.append(-advantages_F * logprobs_F)  # at ratio 1 the ratio's gradient is the log-probability's
    expected = torch.autograd.grad(torch.cat(losses).mean(), adapter)
    before = [parameter.detach().clone() for parameter in adapter]
    plain = torch.optim.SGD([{"params": adapter}, {"params": head}], lr=1.0)  # its step is the gradient
    ppo.update(policy.network, plain, policy.statistics, list(zip(rollouts, rewards, strict=True)), [], policy.settings)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for was, parameter, gradient in zip(before, adapter, expected, strict=True):
        assert torch.allclose(was - parameter, gradient, rtol=1e-3, atol=1e-3 * largest)


def test_a_step_of_the_adapter_that_is_smaller_than_a_rounding_of_the_base_is_not_lost() -> None:
    """One Adam step of 2e-4 behind a base in bfloat16 whose outputs lie 0.008 and more apart: it shows in the mean."""
    base, _ = tiny_base(0)
    base.requires_grad_(False)
    layer = base.model.layers[0].self_attn.q_proj
    layer.weight.mul_(10.0)
    network = Network(base.to(torch.bfloat16), tiny(), torch.device("cpu"))
    layer = base.model.layers[0].self_attn.q_proj
    inputs = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        before = layer(inputs)
        layer.lora_B["rl"].weight.copy_(2e-4 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).sign())
        moved, wanted = layer(inputs) - before, layer.lora_B["rl"](layer.lora_A["rl"](inputs.float())) * 2
    assert network.settings.lora_alpha / network.settings.lora_r == 2
    assert before.dtype == torch.bfloat16
    assert 0.8 < float((moved * wanted).sum() / wanted.square().sum()) < 1.2


def test_an_update_stops_at_the_target_kl(load: Load) -> None:
    policy = load(learning_rate=5e-2, target_kl=1e-3, epochs=8)
    metrics = policy.update(edits(policy), [1.0, -1.0, 0.5, 0.0])
    assert metrics["epochs_done"] < 8
    assert metrics["update_kl"] > 1e-3
    assert metrics["approx_kl"] == pytest.approx(metrics["update_kl"], abs=1e-6), "all were sampled by these weights"


def test_the_age_of_an_edit_does_not_end_an_update_before_its_first_step(load: Load) -> None:
    """Their ratios are beyond target_kl from the start, but not beyond reuse_kl: they teach until the update has moved."""
    policy = load(learning_rate=5e-2, target_kl=100.0, reuse_kl=100.0)
    stale = edits(policy)
    learned_since(policy, 2)
    policy.settings = policy.settings.model_copy(update={"target_kl": 1e-3, "epochs": 8})
    metrics = policy.update(stale, [1.0, -1.0, 0.5, 0.0])
    assert metrics["stale_kl"] > 1e-3
    assert 1 <= metrics["epochs_done"] < 8
    assert metrics["update_kl"] > 1e-3
    alone = load(learning_rate=5e-2, target_kl=100.0, reuse_kl=100.0, epochs=1)
    assert alone.update(edits(alone), [1.0, -1.0, 0.5, 0.0])["update_kl"] == 0.0


def test_an_update_that_fails_in_a_later_epoch_changes_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(epochs=3)
    learned_since(policy, 1)
    rollouts = edits(policy)
    names = {id(parameter): name for name, parameter in policy._parameters.items()}

    def kept() -> dict[str, torch.Tensor]:
        state = optimizer_tensors(policy.optimizer, names)
        return {name: t.detach().clone() for name, t in {**policy._parameters, **state}.items()}

    before, version, calls = kept(), policy.statistics.version, 0

    def broken(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        loss, metrics = policy_loss(*arguments)  # type: ignore[arg-type]
        return (loss, metrics) if calls <= len(rollouts) else (loss * float("nan"), metrics)

    monkeypatch.setattr(ppo, "policy_loss", broken)
    metrics = policy.update(rollouts, [1.0, -1.0, 0.5, 0.0])
    assert calls == 2 * len(rollouts), "the first epoch took its step"
    assert (metrics["skipped"], metrics["epochs_done"], policy.statistics.version) == (1.0, 0.0, version)
    after = kept()
    assert set(after) == set(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    monkeypatch.undo()
    assert policy.update(rollouts, [1.0, -1.0, 0.5, 0.0])["epochs_done"] == 3


def test_an_update_that_runs_out_of_memory_is_done_again_as_if_nothing_had_been(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = [1.0, -1.0, 0.5, 0.0]
    undisturbed, policy = load(epochs=3), load(epochs=3)
    wanted = undisturbed.update(edits(undisturbed), rewards)
    rollouts, calls = edits(policy), 0

    def full(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == len(rollouts) + 2:  # in the second epoch, with a half of its gradient there
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return policy_loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ppo, "policy_loss", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    found = policy.update(rollouts, rewards)
    assert calls > 3 * len(rollouts)
    assert all(found[name] == wanted[name] for name in wanted if name != "update_seconds")
    for name, parameter in undisturbed._parameters.items():
        assert torch.equal(parameter, policy._parameters[name]), name


def test_the_value_head_learns_the_outcome(load: Load) -> None:
    policy = load(value_learning_rate=3e-2, epochs=8, target_kl=10.0, learning_rate=1e-6)
    rollouts = edits(policy)
    errors = [policy.update(rollouts, [1.0, -1.0, 0.5, 0.0])["value_loss"] for _ in range(3)]
    assert errors[-1] < errors[0]


def test_every_metric_is_a_finite_number(load: Load) -> None:
    policy = load()
    metrics = policy.update(edits(policy), [0.1, -0.6, -0.6, 0.3])
    expected = "policy_loss value_loss entropy approx_kl old_approx_kl clipfrac kl_ref explained_variance grad_norm"
    assert set(expected.split()) <= set(metrics)
    assert all(np.isfinite(v) for v in metrics.values())
    assert metrics["epochs_done"] == policy.settings.epochs


def test_equal_rewards_teach_nothing_but_the_entropy(load: Load) -> None:
    policy = load(entropy_coef=0.0, kl_coef=0.0)
    before = {n: p.clone() for n, p in policy.network.adapter_parameters().items()}
    policy.update(edits(policy), [-0.6] * 4)
    assert all(torch.allclose(before[n], p, atol=1e-6) for n, p in policy.network.adapter_parameters().items())


def test_recent_edits_join_and_those_that_drifted_rest(load: Load) -> None:
    policy = load(reuse_edits=2, learning_rate=1e-6)
    rewards = [1.0, -1.0, 0.5, 0.0]
    assert policy.update(edits(policy), rewards)["edits_reused"] == 0
    assert policy.update(edits(policy), rewards)["edits_reused"] == 2
    assert [reward for _, reward in policy.recent] == rewards[-2:]
    strict = load(reuse_edits=4, learning_rate=5e-2, target_kl=100.0, reuse_kl=1e-6)
    strict.update(edits(strict), rewards)
    assert strict.update(edits(strict), rewards)["edits_reused"] == 0


def learned_since(policy: Policy, updates: int) -> None:
    """Have the policy learn from other edits in the meantime."""
    for _ in range(updates):
        assert policy.update(edits(policy, 6)[4:], [1.0, -1.0])["epochs_done"] > 0


def test_a_stale_edits_ratio_divides_by_what_it_was_sampled_with(load: Load) -> None:
    """The clipped surrogate of the first pass, against a plain loop over stored and present log-probabilities."""
    policy = load(epochs=1, learning_rate=5e-2, target_kl=100.0, reuse_kl=100.0, clip=0.02)
    stale, rewards = edits(policy), [1.0, -1.0, 0.5, 0.0]
    learned_since(policy, 2)
    statistics = policy.statistics
    losses, ratios = [], []
    with torch.no_grad():
        judged = policy.network.judge(stale)
    for rollout, reward, says in zip(stale, rewards, judged, strict=True):
        outcome = statistics.scaled(reward, policy.settings.reward_scale_floor)
        actions = rollout.completion_ids[rollout.free_T]
        before = rollout.logprobs_T[rollout.free_T]
        values = rollout.values_T[rollout.free_T]
        for k, action in enumerate(actions):
            ratio = float(np.exp(float(says.logits_FV[k].log_softmax(-1)[action]) - before[k]))
            advantage = outcome - float(values[k])
            losses.append(-min(ratio * advantage, min(max(ratio, 0.98), 1.02) * advantage))
            ratios.append(ratio)
    metrics = policy.update(stale, rewards)
    assert max(abs(ratio - 1) for ratio in ratios) > 0.02, "the policy has moved, and the clip bites"
    assert metrics["policy_loss"] == pytest.approx(np.mean(losses), abs=2e-4)
    assert metrics["ratio_max"] == pytest.approx(max(ratios), rel=1e-3)
    assert metrics["stale_kl"] > 0
    told = {name: metrics[name] for name in ("edits_stale", "edits_stale_resting", "stale_updates")}
    assert told == {"edits_stale": 4.0, "edits_stale_resting": 0.0, "stale_updates": 2.0}


def test_a_stale_edit_that_drifted_too_far_rests_and_the_others_teach(load: Load) -> None:
    policy = load(learning_rate=5e-2, target_kl=100.0, reuse_kl=1e-6, entropy_coef=0.0, kl_coef=0.0)
    stale = edits(policy)
    learned_since(policy, 1)
    before = {n: p.clone() for n, p in policy.network.adapter_parameters().items()}
    metrics = policy.update(stale, [1.0, -1.0, 0.5, 0.0])
    assert (metrics["edits_stale"], metrics["edits_stale_resting"]) == (4.0, 4.0)
    assert (metrics["epochs_done"], metrics["tokens"], metrics["advantage_abs"]) == (0.0, 0.0, 0.0), (
        "it learned from none"
    )
    assert all(torch.equal(before[n], p) for n, p in policy.network.adapter_parameters().items())
    mixed = policy.update([*edits(policy, 2), *stale[2:]], [1.0, -1.0, 0.5, 0.0])
    assert (mixed["edits_stale"], mixed["edits_stale_resting"], mixed["stale_updates"]) == (2.0, 2.0, 1.0)
    assert mixed["epochs_done"] > 0
    assert all(np.isfinite(v) for v in mixed.values())


def test_an_edit_of_the_present_weights_is_not_stale(load: Load) -> None:
    policy = load()
    learned_since(policy, 1)
    metrics = policy.update(edits(policy), [1.0, -1.0, 0.5, 0.0])
    assert (metrics["edits_stale"], metrics["stale_updates"], metrics["stale_kl"]) == (0.0, 0.0, 0.0)


def test_a_stored_edit_keeps_its_age_and_one_of_unknown_age_is_stale(load: Load) -> None:
    policy = load()
    learned_since(policy, 1)
    (rollout,) = edits(policy, 1)
    assert Rollout.from_bytes(rollout.to_bytes()).policy_version == rollout.policy_version == 1
    old = dataclasses.replace(rollout, policy_version=UNKNOWN_VERSION)
    assert policy.update([old], [1.0])["edits_stale"] == 1


def test_edits_of_a_policy_that_went_back_to_an_older_checkpoint_are_stale(load: Load) -> None:
    policy = load()
    learned_since(policy, 1)
    newer = edits(policy)
    back = load()
    metrics = back.update(newer, [1.0, -1.0, 0.5, 0.0])
    assert (metrics["edits_stale"], metrics["stale_updates"]) == (4.0, 1.0)


@pytest.mark.parametrize("rewards", [[1.0], [float("nan")] * 4, []])
def test_bad_rewards_are_refused(load: Load, rewards: list[float]) -> None:
    policy = load()
    rollouts = edits(policy, 1) * 4
    with pytest.raises(ValueError, match="reward"):
        policy.update(rollouts, rewards)


def test_running_statistics_agree_with_a_plain_count_and_then_forget() -> None:
    statistics = Statistics()
    rewards = [0.1, -0.6, 0.4, 0.2, -0.8]
    statistics.absorb(rewards, horizon=100)
    assert statistics.mean == pytest.approx(np.mean(rewards))
    assert statistics.variance == pytest.approx(np.var(rewards), abs=1e-6)  # the 1 that it starts at weighs nothing
    statistics.absorb([5.0] * 60, horizon=8)
    assert statistics.mean == pytest.approx(5.0, abs=0.01)


def test_a_collapse_of_entropy_is_answered_and_the_answer_withdrawn() -> None:
    statistics = Statistics()
    for _ in range(ENTROPY_START_UPDATES):
        statistics.watch_entropy(2.0)
    assert statistics.entropy_boost == 1.0
    for _ in range(3):
        statistics.watch_entropy(2.0 * ENTROPY_FLOOR * 0.9)
    assert statistics.entropy_boost == 8.0
    for _ in range(5):
        statistics.watch_entropy(2.0)
    assert statistics.entropy_boost == 1.0
