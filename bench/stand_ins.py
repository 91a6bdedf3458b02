"""Stand-ins for what a benchmark of the loop does not measure: the training of a candidate, and an edit that runs.

Their answers are a function of the source and the seed alone, so that two campaigns of the same seeds can be compared.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import flows.iteration
from arl_core.policy.rollout import EditBlock, Rollout
from arl_core.records import source_hash
from frozen_env.contract import Cause, Ending, Report, RunResult, Score
from frozen_env.spec import EnvironmentSpec

DIGEST = "stand-in"
REPORTS = 20
HELD_OUT_TOKENS, HELD_OUT_BYTES = 1000, 4000


def answer(source: str, seed: int, budget_s: float) -> RunResult:
    """Return what a candidate would have left behind: a score near 2, the worse the further MUON_LR is from 0.02.

    One in eight sources crashes, as its hash decides.
    """
    digest = hashlib.sha256(f"{source_hash(source)} {seed}".encode()).digest()
    luck = int.from_bytes(digest[:4], "big") / 2**32
    if digest[4] % 8 == 0 and "MUON_LR = 0.01\n" not in source:
        reason = f"NameError: name 'x{digest[5]}' is not defined"
        return RunResult(Ending.CRASHED, Cause.EXCEPTION, reason, environment_digest=DIGEST, seed=seed, sandbox="none")
    rate = re.search(r"^MUON_LR = ([\d.e-]+)", source, re.MULTILINE)
    value = 2.0 + 10 * abs(float(rate[1]) - 0.02) + 0.02 * luck if rate else 2.5 + luck
    reports = tuple(
        Report(k, budget_s * k / REPORTS, k / REPORTS, value + 3.0 * 0.8**k, 1e-3) for k in range(1, REPORTS + 1)
    )
    score = Score("val_bpb", value, "lower", HELD_OUT_TOKENS, HELD_OUT_BYTES, 0.1, 0.1, 0.0)
    return RunResult(
        Ending.FINISHED,
        score=score,
        reports=reports,
        startup_s=0.1,
        training_s=budget_s,
        scoring_s=0.1,
        tokens_served=1000,
        peak_memory_mb=100.0,
        sandbox="none",
        environment_digest=DIGEST,
        seed=seed,
    )


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
    """Exchange every proposed edit for one that moves a constant a little; the rollout stays what the policy sampled.

    The new value is a function of the proposal's seed, so a campaign that is resumed makes the same edits.
    """
    one, many = flows.iteration.propose, flows.iteration.propose_many

    def edited(rollout: Rollout, source: str, seed: int) -> Rollout:
        line = next(line for line in source.splitlines(keepends=True) if line.startswith(f"{change} = "))
        value = 0.01 + (seed % 100_003) * 1e-7
        return replace(rollout, blocks=(EditBlock(line, f"{change} = {value:.7f}\n"),))

    def propose(policy: Any, prompt: str, source: str, seed: int) -> Rollout:
        return edited(one(policy, prompt, source, seed), source, seed)

    def propose_many(policy: Any, prompt: str, source: str, seeds: Sequence[int]) -> list[Rollout]:
        rollouts = many(policy, prompt, source, seeds)
        return [edited(rollout, source, seed) for rollout, seed in zip(rollouts, seeds, strict=True)]

    flows.iteration.propose, flows.iteration.propose_many = propose, propose_many  # type: ignore[assignment]
    try:
        yield
    finally:
        flows.iteration.propose, flows.iteration.propose_many = one, many
