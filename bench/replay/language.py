"""The language-model arms: a campaign's prompt, edits, novelty check, memory, reward and PPO; only training is answered.

`greedy` leaves the policy as the warm start made it and runs whatever it samples. `rl` is the whole system: PPO updates the
policy, and the critic, fitted on the arm's own results, chooses which of its samples are run. `ppo` and `critic` have one of
the two each, to see which does what. Values outside the recorded ranges, which the numeric arms never draw, are known to be
refused before a choice is made. A round proposes several edits of the incumbent under
one prompt, takes their answers one by one, and promotes what looks better than the incumbent of that moment. Everything is
committed experiment by experiment, so an arm that was killed goes on where it stood.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arl_core.config import CampaignConfig, load_config
from arl_core.edit import read_constants
from arl_core.memory import Memory
from arl_core.outcome import settle
from arl_core.records import Campaign, Experiment, State, source_hash, utc_now
from bench.replay.space import Setting
from bench.replay.surrogate import Surrogate
from flows.session import pack_rollouts, unpack_rollouts
from frozen_env.contract import Cause, Ending, RunResult, Score, Status
from frozen_env.fetch import data_dir
from tasks.patch import Patch, applied
from tasks.prompt import make_prompt
from tasks.propose import choosing
from tasks.reward import make_reward

ROOT = Path(__file__).resolve().parents[2]
ARMS = {  # arm: does PPO update the policy, does the critic choose among policy.choices samples for each experiment
    "greedy": (False, False),
    "rl": (True, True),
    "ppo": (True, False),
    "critic": (False, True),
}
REFUSED_S = 10.0  # simulated time of a proposal that is not run: the policy's own


@dataclass
class LanguageArm:
    """One arm and seed, resumable: its memory file and policy checkpoints live in `folder`."""

    surrogate: Surrogate
    folder: Path
    name: str  # of ARMS
    seed: int
    edits_per_round: int
    overrides: dict[str, Any]
    checkpoint: list[str] | None = None  # name and digest of the policy that the last state names
    say: Callable[[str], None] = lambda _line: None

    def __post_init__(self) -> None:
        self.learn, self.choose = ARMS[self.name]

    def run(self, hours: float) -> list[Experiment]:
        """Go on until the simulated hours are used and return all experiments, without their texts."""
        from arl_core.policy.policy import Policy

        alone = {} if self.choose else {"policy.choices": 1}
        config = load_config("replay", {"seed": self.seed, "policy.seed": self.seed, **self.overrides, **alone})
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(Memory(self.folder / "memory.duckdb")) as memory:
            campaign = self._campaign(memory, config)
            policy = Policy.load(config.policy, data_dir(), self.say)
            pending, spent_s = self._resume(memory, campaign, policy)
            while spent_s < hours * 3600:
                pending, spent_s = self._round(memory, campaign, config, policy, pending, spent_s)
            return memory.experiments(campaign.id)

    def _campaign(self, memory: Memory, config: CampaignConfig) -> Campaign:
        if found := memory.campaigns():
            return found[0]
        campaign = Campaign(
            id=f"replay-{self.name}-{self.seed}",
            preset="replay",
            config=config.to_json(),
            environment_digest="replay",
            seed=self.seed,
            started_at=utc_now(),
            problem="replay",
        )
        memory.create_campaign(campaign)
        source = (ROOT / config.source).read_text(encoding="utf-8")
        result = self._answer(read_constants(source), 0)
        outcome = settle(result, None, campaign.direction)
        first = self._experiment(campaign, 0, outcome, result.training_s, source=source, summary="the untouched target")
        memory.commit_iteration(first, State(values={"spent_s": result.training_s}))
        return campaign

    def _resume(self, memory: Memory, campaign: Campaign, policy: Any) -> tuple[list[Any], float]:
        state = memory.state(campaign.id)
        assert state is not None, "experiment 0 is committed with a state"
        self.checkpoint = state.values.get("checkpoint")
        if self.checkpoint:
            name, digest = self.checkpoint
            policy.restore(self.folder / "policy" / name, digest)
        return unpack_rollouts(state.blob), float(state.values["spent_s"])

    def _round(
        self,
        memory: Memory,
        campaign: Campaign,
        config: CampaignConfig,
        policy: Any,
        pending: list[Any],
        spent_s: float,
    ) -> tuple[list[Any], float]:
        """Propose from one state, answer, commit each; update the policy when enough rewards wait."""
        base = memory.incumbent(campaign.id)
        assert base is not None, "experiment 0 was kept"
        assert base.value is not None
        first = memory.next_index(campaign.id)
        prompt = make_prompt.fn(memory, campaign, config, base, first, policy.count_tokens, ROOT)
        count = self.edits_per_round
        seeds = [(self.seed * 1_000_003 + first + i) % 2**31 for i in range(count)]
        space = self.surrogate.space
        choose = choosing(
            memory, campaign, config, base.source, allowed=lambda program: not space.refuses(read_constants(program))
        )
        rollouts = policy.propose_many([prompt.text] * count, [base.source] * count, seeds, choose)
        best = base.value
        for index, rollout in enumerate(rollouts, start=first):
            edit = applied(base.source, rollout, config.edit, memory, campaign.id, config.problem())
            result = self._answer(read_constants(edit.source), index) if edit.runs else refused(edit)
            outcome = settle(result, best, campaign.direction)
            if edit.duplicate_of is not None:
                outcome = type(outcome)(Status.DUPLICATE, Cause.NONE, edit.reason)
            terms = make_reward.fn(outcome, base.value, campaign.direction, config.reward)
            if outcome.status is Status.KEPT and outcome.value is not None:
                best = outcome.value
            pending = [*pending, (rollout, terms["reward"])]
            spent_s += result.training_s
            metrics: dict[str, float] = {}
            if self.learn and len(pending) >= config.policy.batch_edits:
                metrics = policy.update([one for one, _ in pending], [reward for _, reward in pending])
                pending = []
                self.checkpoint = self._save(policy, index)
            experiment = self._experiment(
                campaign,
                index,
                outcome,
                result.training_s,
                parent_index=base.index,
                incumbent_value=base.value,
                source=edit.source,
                source_hash=source_hash(edit.source) if edit.source else "",
                diff=edit.diff,
                summary=edit.summary,
                prompt=prompt.text if index == first else "",
                completion=rollout.completion,
                reward=terms["reward"],
                reward_terms=terms,
                extra={"update": metrics} if metrics else {},
            )
            pending = pending if self.learn else []
            values = {"spent_s": spent_s, "checkpoint": self.checkpoint}
            memory.commit_iteration(experiment, State(values=values, blob=pack_rollouts(pending)))
        self.say(f"#{first + count - 1} {spent_s / 3600:.1f} h, best seen {best:.4f} {_short(metrics)}")
        return pending, spent_s

    def _save(self, policy: Any, index: int) -> list[str]:
        """Save the policy in one of three places in turn: the state names the last, the one before may still be named."""
        name = f"step{index % 3}"
        return [name, policy.save(self.folder / "policy" / name)]

    def _answer(self, setting: Setting, index: int) -> RunResult:
        """The judge instead of a run; its noise depends on the arm's seed and the experiment alone."""
        if reason := self.surrogate.space.refuses(setting):
            return RunResult(Ending.REJECTED, Cause.PROTOCOL, reason, training_s=REFUSED_S)
        answer = self.surrogate.answer(setting, np.random.default_rng([self.seed, index]))
        if answer.seen_bpb is None:
            return RunResult(Ending.CRASHED, Cause.OUT_OF_MEMORY, "out of memory", training_s=answer.wall_s)
        score = Score("val_bpb", answer.seen_bpb, "lower", 0, 0, 0.0, 0.0, 0.0)
        return RunResult(Ending.FINISHED, score=score, training_s=answer.wall_s)

    def _experiment(self, campaign: Campaign, index: int, outcome: Any, spent_s: float, **known: Any) -> Experiment:
        return Experiment(
            campaign_id=campaign.id,
            index=index,
            status=outcome.status,
            cause=outcome.cause,
            reason=outcome.reason,
            metric="val_bpb",
            value=outcome.value,
            costs={"simulated": spent_s},
            created_at=utc_now(),
            environment_digest="replay",
            seed=self.seed,
            **known,
        )


def refused(edit: Patch) -> RunResult:
    """An edit that is not run: it costs the policy's time only."""
    return RunResult(Ending.REJECTED, Cause.NONE, edit.reason, training_s=REFUSED_S)


def _short(metrics: dict[str, float]) -> str:
    shown = ("reward_batch_mean", "entropy", "approx_kl", "kl_ref", "epochs_done", "explained_variance")
    return " ".join(f"{name} {metrics[name]:.3g}" for name in shown if name in metrics)
