"""Stand-ins for what a benchmark of the loop does not measure: the training of a candidate, and an edit that runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import flows.iteration
from arl_core.policy.rollout import EditBlock, Rollout
from bench.answers import DIGEST, answer
from frozen_env.contract import RunResult
from frozen_env.spec import EnvironmentSpec


class SleepingHost:
    """A host whose candidates sleep for their budget instead of computing."""

    def __init__(self, spec: EnvironmentSpec, _data: Path, _stderr: Path | None = None, gpu: Any = None) -> None:
        self.spec, self.gpu = spec, gpu
        self.sandbox, self.environment_digest = "none", DIGEST

    def start(self) -> None: ...

    def wait_ready(self) -> None: ...

    def abort(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, source: str, *, seed: int, on_event: Any = lambda _event: None, **_: Any) -> RunResult:
        on_event({"event": "started", "startup_s": 0.0})
        time.sleep(self.spec.budget_s)
        return answer(source, seed, self.spec.budget_s)


@contextmanager
def running_edits(change: str = "MUON_LR") -> Iterator[None]:
    """Exchange every proposed edit for one that moves a constant; the rollout stays what the policy sampled.

    The new value is a function of the proposal's seed, so a campaign that is resumed makes the same edits.
    """
    one, many = flows.iteration.propose, flows.iteration.propose_many

    def edited(rollout: Rollout, source: str, seed: int) -> Rollout:
        line = next(line for line in source.splitlines(keepends=True) if line.startswith(f"{change} = "))
        value = 0.01 + (seed * 7919 % 100_003) * 1e-7  # anywhere between 0.01 and 0.02: early ones are often better
        return replace(rollout, blocks=(EditBlock(line, f"{change} = {value:.7f}\n"),))

    def propose(policy: Any, prompt: str, source: str, seed: int, choose: Any) -> Rollout:
        return edited(one(policy, prompt, source, seed, choose), source, seed)

    def propose_many(
        policy: Any, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Any
    ) -> list[Rollout]:
        edits, source_of = many(policy, prompts, sources, seeds, choose), dict(zip(prompts, sources, strict=True))
        return [edited(one, source_of[one.prompt], seed) for one, seed in zip(edits, seeds, strict=True)]

    flows.iteration.propose, flows.iteration.propose_many = propose, propose_many  # type: ignore[assignment]
    try:
        yield
    finally:
        flows.iteration.propose, flows.iteration.propose_many = one, many
