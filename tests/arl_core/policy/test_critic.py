"""The critic that chooses which of several sampled edits is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arl_core.policy.critic import LEAST, MOST, Critic
from arl_core.policy.policy import Policy
from arl_core.policy.rollout import Rollout
from tests.arl_core.policy.conftest import PROMPT, SOURCE

Load = Callable[..., Policy]


def taught(count: int = 200, noise: float = 0.1) -> tuple[Critic, np.ndarray, np.ndarray]:
    """A critic that saw rewards linear in 20 features; returns it, the features' weights and new candidates."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=20)
    known = rng.normal(size=(count, 20)).astype(np.float32)
    critic = Critic()
    critic.learn(list(known), list(known @ weights + noise * rng.normal(size=count)))
    return critic, weights, rng.normal(size=(50, 20)).astype(np.float32)


def test_its_mean_is_that_of_ridge_regression() -> None:
    """The kernel form against plain linear algebra in feature space, at the noise share that it chose."""
    critic, _, new = taught()
    known, rewards = np.array(critic.features, float), np.array(critic.rewards)
    centre, spread = known.mean(0), known.std(0) + 1e-3
    a, b = (known - centre) / spread / 20**0.5, (new - centre) / spread / 20**0.5
    mean, _ = critic.predict(new)
    fits = []
    for share in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        weights = np.linalg.solve(a.T @ a + share * np.eye(20), a.T @ (rewards - rewards.mean()))
        fits.append(np.abs(rewards.mean() + b @ weights - mean).max())
    assert min(fits) < 1e-8


def test_it_orders_edits_that_it_never_saw() -> None:
    critic, weights, new = taught()
    mean, covariance = critic.predict(new)
    assert np.corrcoef(mean, new @ weights)[0, 1] > 0.98
    assert (np.linalg.eigvalsh(covariance) > -1e-9).all()


def test_pure_noise_teaches_it_little() -> None:
    rng = np.random.default_rng(1)
    critic = Critic()
    critic.learn(list(rng.normal(size=(100, 20)).astype(np.float32)), list(rng.normal(size=100)))
    mean, _ = critic.predict(rng.normal(size=(50, 20)).astype(np.float32))
    assert mean.std() < 0.5


def test_its_draws_follow_its_uncertainty() -> None:
    critic, _, new = taught(count=LEAST, noise=1.0)
    mean, covariance = critic.predict(new[:4])
    draws = np.array([critic.draw(new[:4], seed) for seed in range(4000)])
    assert draws.mean(0) == pytest.approx(mean, abs=0.1)
    assert np.cov(draws.T) == pytest.approx(covariance, abs=0.25)


def test_it_has_no_opinion_before_it_saw_enough() -> None:
    critic = Critic()
    critic.learn([np.ones(3, np.float32)] * (LEAST - 1), [1.0] * (LEAST - 1))
    assert list(critic.draw(np.ones((2, 3), np.float32), 0)) == [0.0, 0.0]
    with pytest.raises(ValueError, match="needs 16"):
        critic.predict(np.ones((2, 3), np.float32))


def test_it_forgets_the_oldest_edits() -> None:
    critic = Critic()
    critic.learn([np.full(3, i, np.float32) for i in range(MOST + 5)], list(range(MOST + 5)))
    assert len(critic.rewards) == MOST
    assert critic.rewards[0] == 5.0


def test_an_edits_features_do_not_depend_on_its_neighbours_or_on_what_the_policy_learned(load: Load) -> None:
    policy = load(learning_rate=3e-3, target_kl=10.0)
    rollouts = policy.propose_many([PROMPT] * 3, [SOURCE] * 3, [0, 1, 2])
    ids = [rollout.completion_ids for rollout in rollouts]
    before = policy.network.features(ids)
    assert policy.network.features(ids[:1])[0] == pytest.approx(before[0], abs=1e-5)
    policy.update(rollouts, [1.0, -1.0, 0.0])
    assert policy.network.features(ids) == pytest.approx(before, abs=1e-6)
    assert not np.allclose(before[0], before[1])


def test_with_choices_the_policy_returns_what_the_critic_likes(load: Load) -> None:
    """Taught that edits of one line pay, it runs them; alone, the same samples come in the order of their seeds."""
    policy = load(choices=12)
    pool = load().propose_many([PROMPT] * 12, [SOURCE] * 12, range(24 * 12, 25 * 12))

    def pays(rollout: Rollout) -> bool:
        return "DEPTH" in rollout.completion.split("=======")[0]

    assert 0 < sum(map(pays, pool)) < 12
    others = load().propose_many([PROMPT] * 60, [SOURCE] * 60, range(60))
    features = policy.network.features([rollout.completion_ids for rollout in others])
    policy.critic.learn(list(features), [float(pays(rollout)) for rollout in others])
    chosen = policy.propose(PROMPT, SOURCE, 24)
    assert chosen.completion in {rollout.completion for rollout in pool}
    assert pays(chosen)


def test_edits_that_are_not_worth_it_are_taken_last_and_none_twice(load: Load) -> None:
    policy = load(choices=4)
    seeds = [7, 8, 9]
    pool = {r.completion for r in load().propose_many([PROMPT] * 12, [SOURCE] * 12, range(28, 40))}
    poor = sorted(pool)[: len(pool) // 2]
    chosen = policy.propose_many([PROMPT] * 3, [SOURCE] * 3, seeds, lambda rollout: rollout.completion not in poor)
    completions = [rollout.completion for rollout in chosen]
    assert len(set(completions)) == 3
    assert not set(completions) & set(poor)
    assert set(completions) <= pool


def test_a_restored_policy_has_its_critic_back(load: Load, tmp_path: Path) -> None:
    policy = load(choices=2)
    rollouts = policy.propose_many([PROMPT] * 4, [SOURCE] * 4, range(4))
    for _ in range(5):
        policy.update(rollouts, [1.0, -1.0, 0.5, 0.0])
    digest = policy.save(tmp_path / "step")
    other = load(choices=2)
    other.restore(tmp_path / "step", digest)
    assert other.critic.rewards == policy.critic.rewards
    one, two = (p.propose(PROMPT, SOURCE, 5).completion for p in (policy, other))
    assert one == two
