"""The embedded model itself: loads, proposes valid edits, and learns from the distribution that it sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arl_core.edit import apply_completion
from arl_core.policy.policy import Policy
from arl_core.policy.settings import PolicySettings
from frozen_env.fetch import data_dir

TARGET = (Path(__file__).resolve().parents[3] / "target" / "train.py").read_text(encoding="utf-8")
PROMPT = "## Source\nDEPTH = 12  # transformer blocks\n## Task\nPropose one edit.\n"

pytestmark = pytest.mark.real_policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(PolicySettings(threads=1), data_dir())


def logprob_differences(policy: Policy, seeds: list[int]) -> list[np.ndarray]:
    """The learner's log-probabilities of sampled tokens minus the sampler's, by edit."""
    rollouts = policy.propose_many([PROMPT] * len(seeds), [TARGET] * len(seeds), seeds)
    with torch.no_grad():
        judged = policy.network.judge(rollouts)
    differences = []
    for rollout, says in zip(rollouts, judged, strict=True):
        actions = torch.from_numpy(rollout.completion_ids[rollout.free_T])
        again = says.logits_FV.log_softmax(-1).gather(1, actions[:, None])[:, 0].numpy()
        differences.append(again - rollout.logprobs_T[rollout.free_T])
    return differences


def test_its_edits_apply(policy: Policy) -> None:
    rollouts = policy.propose_many([PROMPT] * 2, [TARGET] * 2, [1, 2])
    for rollout in rollouts:
        assert not rollout.ended or apply_completion(TARGET, rollout.completion).diff


def test_sampling_and_learning_agree_as_far_as_bfloat16_goes(policy: Policy) -> None:
    """What rounding moves is logged as sampler_kl; it must stay far from what an update may move."""
    for difference in logprob_differences(policy, [3, 4]):
        assert np.mean(np.exp(difference) - 1 - difference) < policy.settings.target_kl / 3


def test_in_float32_ratios_start_at_one() -> None:
    policy = Policy.load(PolicySettings(threads=1, dtype="float32"), data_dir())
    for difference in logprob_differences(policy, [3, 4]):
        assert np.abs(difference).max() < 1e-4
