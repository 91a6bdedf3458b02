"""The numeric searches: arms without a language model. Each yields settings and is told what it saw.

An arm sees noisy values of its own trials only, None where one failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from arl_core.config import load_config
from arl_core.edit import write_constants
from arl_core.policy.critic import Critic
from bench.replay.space import BASELINE, Constant, Setting, Space

# What a failed trial is told as, so that samplers learn to avoid it: worse than any value. Both go by ranks alone.
FAILED_BPB = 10.0
ROOT = Path(__file__).resolve().parents[2]
NUMERIC_CODE = (  # what decides these arms' results, optuna aside
    "arl_core/policy/critic.py",
    "bench/replay/arms.py",
    "bench/replay/space.py",
    "bench/replay/surrogate.py",
    "bench/replay/target.py",
)
ROUND, POOL = 4, 32  # of `local_critic`, as `rl` has them: runs between two fits, and what they are chosen from
Search = Generator[Setting, float | None, None]  # yields a setting, is sent what was seen


def random_search(space: Space, seed: int) -> Search:
    """Fresh draws over the whole ranges."""
    rng = np.random.default_rng(seed)
    while True:
        yield space.draw(rng)


def local_search(space: Space, seed: int) -> Search:
    """Move one to three constants of the incumbent at random and keep what looks better."""
    rng = np.random.default_rng(seed)
    best = dict(BASELINE)
    best_seen = yield best
    while True:
        trial = space.neighbour(best, rng)
        seen = yield trial
        if seen is not None and (best_seen is None or seen < best_seen):
            best, best_seen = trial, seen


def local_critic_search(space: Space, seed: int) -> Search:
    """Moves as `local` makes them, chosen among by the policy's critic: what `rl` would be with no language model in it.

    As `rl` with policy.parents = by_turns: rounds of four runs, those with the lowest draws of the critic among 32 new settings,
    half of them neighbours of the incumbent and half of the setting that the critic expects most of.
    """
    config, rng = load_config("replay"), np.random.default_rng(seed)
    source = (ROOT / config.source).read_text(encoding="utf-8")
    tried, programs, losses = [dict(BASELINE)], [write_constants(source, BASELINE)], [(yield dict(BASELINE))]
    while True:
        critic = Critic(programs, losses, config.reward.scale)
        known_N = np.array([np.inf if loss is None else loss for loss in losses])
        best = expected = int(np.argmin(known_N))
        if critic.ready:
            expected = int(np.argmin(np.where(np.isfinite(known_N), critic.predict(programs)[0], np.inf)))
        pool: list[Setting] = []
        while len(pool) < POOL:
            one = space.neighbour(tried[expected if len(pool) % 2 else best], rng)
            if one not in tried and one not in pool:
                pool.append(one)
        first = seed * 1_000_003 + len(tried)
        written = [write_constants(source, one) for one in pool]
        for place in critic.choose(written, range(first, first + ROUND)):
            losses.append((yield pool[place]))
            tried.append(pool[place])
            programs.append(written[place])


def tpe_search(space: Space, seed: int) -> Search:
    """Optuna's tree-structured Parzen estimator, the baseline enqueued first."""
    import optuna

    return _optuna_search(space, optuna.samplers.TPESampler(seed=seed))


def cmaes_search(space: Space, seed: int) -> Search:
    """Optuna's CMA-ES around the baseline; choices become ordered integers, which it needs."""
    import optuna

    first = {one.name: _encode(one, BASELINE[one.name]) for one in space.constants}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # x0 will move to another package; nothing replaces it in this one
        sampler = optuna.samplers.CmaEsSampler(x0=first, seed=seed)
    return _optuna_search(space, sampler, ordered=True)


def _optuna_search(space: Space, sampler: Any, ordered: bool = False) -> Search:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    first = {one.name: _encode(one, BASELINE[one.name]) if ordered else BASELINE[one.name] for one in space.constants}
    study.enqueue_trial(first)
    while True:
        trial = study.ask()
        setting = {one.name: _suggest(trial, one, ordered) for one in space.constants}
        seen = yield setting
        study.tell(trial, seen if seen is not None else FAILED_BPB)


def _suggest(trial: Any, one: Constant, ordered: bool) -> Any:
    if one.kind == "choice":
        if ordered:
            return one.choices[trial.suggest_int(one.name, 0, len(one.choices) - 1)]
        return trial.suggest_categorical(one.name, one.choices)
    if one.kind == "integer":
        return trial.suggest_int(one.name, int(one.low), int(one.high))
    return trial.suggest_float(one.name, one.low, one.high, log=one.kind == "log")


def _encode(one: Constant, value: Any) -> Any:
    return one.choices.index(value) if one.kind == "choice" else value


NUMERIC = {
    "random": random_search,
    "local": local_search,
    "local_critic": local_critic_search,
    "tpe": tpe_search,
    "cmaes": cmaes_search,
}
