"""The language-model arms: a campaign's prompt, edits, novelty check, memory, reward and PPO; only training is answered.

`greedy` leaves the policy as the warm start made it and runs whatever it samples. `rl` is the whole system: PPO updates the
policy, and the critic, fitted on the arm's own results, chooses which of its samples are run. `ppo` and `critic` have one of
the two each, to see which does what; `filter` has neither, and of as many samples runs the first that are valid, new and
within the recorded ranges. The ranges are known before a choice is made (the numeric arms never draw outside of them), so arms
that choose pay for no refusal where `greedy` and `ppo` do.

A round proposes several edits of the incumbent under one prompt, takes their answers one by one, and promotes what looks better
than the incumbent of that moment. Everything is committed experiment by experiment, what is left of the round included, so an
arm that was killed goes on where it stood and ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arl_core.config import CampaignConfig, flat, load_config
from arl_core.diversity import diversity
from arl_core.edit import read_constants
from arl_core.errors import ConfigError
from arl_core.memory import RECENT, Memory
from arl_core.outcome import settle
from arl_core.patch import Patch, applied
from arl_core.policy.critic import Critic
from arl_core.policy.parents import Shown
from arl_core.records import Campaign, Experiment, source_hash, utc_now
from bench.replay.code import code_digest
from bench.replay.progress import Progress
from bench.replay.space import Setting
from bench.replay.surrogate import Surrogate
from frozen_env.contract import Cause, Ending, RunResult, Score, Status
from frozen_env.fetch import data_dir
from tasks.prompt import make_prompt
from tasks.propose import choosing, fitted_critic, parents_of
from tasks.reward import make_reward

ROOT = Path(__file__).resolve().parents[2]
ARMS = {  # arm: does PPO update the policy, who chooses among policy.choices samples for each experiment
    "greedy": (False, None),
    "rl": (True, "critic"),
    "ppo": (True, None),
    "critic": (False, "critic"),
    "filter": (False, "filter"),
}
CODE = (  # files and folders that decide an arm's results; adapters, agenda and ranges lie in them too
    "arl_core/edit",
    "arl_core/memory.py",
    "arl_core/memory_rows.py",
    "arl_core/outcome.py",
    "arl_core/patch.py",
    "arl_core/policy",
    "arl_core/presets/replay.toml",
    "arl_core/prompt.py",
    "arl_core/prompt_facts.py",
    "arl_core/records.py",
    "arl_core/reward.py",
    "bench/replay",
    "frozen_env/constants.py",
    "tasks/prompt.py",
    "tasks/propose.py",
    "tasks/reward.py",
)
SECTIONS = ("policy", "reward", "prompt", "edit")  # of the settings: their defaults decide too
REFUSED_S = 10.0  # simulated time of a proposal that is not run: the policy's own


def made_with(config: CampaignConfig) -> str:
    """Return what an arm's result depends on besides its settings: a digest of the code, and the type that the base computes in.

    Results of different code or types may differ for that alone, so arms are compared within one.
    """
    from arl_core.policy.weights import base_dtype

    defaults = load_config("replay").to_json()
    code = code_digest(CODE, ROOT, json.dumps([defaults[name] for name in SECTIONS], sort_keys=True))
    return f"{code} {str(base_dtype(config.policy)).removeprefix('torch.')}"


@dataclass
class LanguageArm:
    """One arm and seed, resumable: its memory file and policy checkpoints live in `folder`."""

    surrogate: Surrogate
    folder: Path
    name: str  # of ARMS
    seed: int
    edits_per_round: int
    overrides: dict[str, Any]
    say: Callable[[str], None] = lambda _line: None

    def __post_init__(self) -> None:
        self.learn, self.chooser = ARMS[self.name]
        self.made_with = ""

    def run(self, hours: float) -> list[Experiment]:
        """Go on until the simulated hours are used and return the experiments that began within them.

        ConfigError when what stands in the folder was made with other settings, rounds or trials.
        """
        from arl_core.policy.policy import Policy

        alone = {} if self.chooser else {"policy.choices": 1}
        config = load_config("replay", {"seed": self.seed, "policy.seed": self.seed, **self.overrides, **alone})
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(Memory(self.folder / "memory.duckdb")) as memory:
            campaign = self._campaign(memory, config)
            policy = Policy.load(config.policy, data_dir(), self.say)
            progress = self._resume(memory, campaign, policy)
            if (now := made_with(config)) not in progress.made_with:
                progress.made_with.append(now)
            self.made_with = " then ".join(progress.made_with)  # unlike every other: nothing is paired with it unmarked
            while progress.spent_s < hours * 3600:
                if not progress.waiting:
                    self._propose(memory, campaign, config, policy, progress)
                self._take_next(memory, campaign, config, policy, progress)
            return begun_within(hours, memory.experiments(campaign.id))

    def _campaign(self, memory: Memory, config: CampaignConfig) -> Campaign:
        settings = {
            **config.to_json(),
            "replay": {"edits_per_round": self.edits_per_round, "trials": self.surrogate.digest},
        }
        if found := memory.campaigns():
            campaign = found[0]
            self._refuse_other(campaign.config, settings)
        else:
            campaign = Campaign(
                id=f"replay-{self.name}-{self.seed}",
                preset="replay",
                config=settings,
                environment_digest="replay",
                seed=self.seed,
                started_at=utc_now(),
                problem="replay",
            )
            memory.create_campaign(campaign)
        if memory.state(campaign.id) is None:
            self._commit_first(memory, campaign, (ROOT / config.source).read_text(encoding="utf-8"))
        return campaign

    def _commit_first(self, memory: Memory, campaign: Campaign, source: str) -> None:
        """Answer the untouched target: experiment 0."""
        result = self._answer(read_constants(source), 0)
        outcome = settle(result, None, campaign.direction)
        first = self._experiment(campaign, 0, outcome, result.training_s, source=source, summary="the untouched target")
        memory.commit_iteration(first, Progress(spent_s=result.training_s).to_state())

    def _refuse_other(self, found: dict[str, Any], asked: dict[str, Any]) -> None:
        """Results of one configuration must not be taken for those of another."""
        then, now = flat(found), flat(asked)
        names = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if names:
            changes = ", ".join(f"{name} ({then.get(name)} there, {now.get(name)} here)" for name in names[:3])
            raise ConfigError(
                f"{self.folder} holds a run made with other settings: {changes}{', …' if names[3:] else ''}; "
                "name another folder with --work, or remove that one"
            )

    def _resume(self, memory: Memory, campaign: Campaign, policy: Any) -> Progress:
        state = memory.state(campaign.id)
        assert state is not None, "experiment 0 is committed with a state"
        progress = Progress.from_state(state)
        if progress.checkpoint:
            name, digest = progress.checkpoint
            policy.restore(self.folder / "policy" / name, digest)
        return progress

    def _propose(
        self, memory: Memory, campaign: Campaign, config: CampaignConfig, policy: Any, progress: Progress
    ) -> None:
        """Sample a round of edits of the incumbent, or by turns of the critic's favourite."""
        incumbent = memory.incumbent(campaign.id)
        assert incumbent is not None, "experiment 0 was kept"
        first, count, space = memory.next_index(campaign.id), self.edits_per_round, self.surrogate.space
        critic = Critic([], [], 1.0) if self.chooser == "filter" else fitted_critic(memory, campaign, config)
        shown = Shown.of(
            parents_of(memory, campaign, config, critic, incumbent, range(first, first + count)),
            lambda one: make_prompt.fn(memory, campaign, config, incumbent, one, first, policy.count_tokens, ROOT).text,
        )
        seeds = [(self.seed * 1_000_003 + first + i) % 2**31 for i in range(count)]
        choose = choosing(
            memory,
            campaign,
            config,
            critic,
            shown.parents,
            allowed=lambda program: not space.refuses(read_constants(program)),
        )
        progress.waiting = policy.propose_many(shown.prompts, shown.sources, seeds, choose)
        progress.parents = [shown.parents[one.prompt].index for one in progress.waiting]
        progress.base_index = incumbent.index

    def _take_next(
        self, memory: Memory, campaign: Campaign, config: CampaignConfig, policy: Any, progress: Progress
    ) -> None:
        """Answer the round's next edit, update the policy when enough rewards wait, and commit."""
        index = memory.next_index(campaign.id)
        base, best = memory.experiment(campaign.id, progress.base_index), memory.incumbent(campaign.id)
        rollout, *progress.waiting = progress.waiting
        number, *progress.parents = progress.parents
        parent = memory.experiment(campaign.id, number)
        assert base is not None
        assert best is not None
        assert parent is not None
        edit = applied(parent.source, rollout, config.edit, memory, campaign.id, config.problem())
        result = self._answer(read_constants(edit.source), index) if edit.runs else refused(edit)
        outcome = settle(result, best.value, campaign.direction)
        if edit.duplicate_of is not None:
            outcome = type(outcome)(Status.DUPLICATE, Cause.NONE, edit.reason)
        terms = make_reward.fn(outcome, base.value, campaign.direction, config.reward)
        progress.spent_s += result.training_s
        if metrics := self._learn(policy, progress, rollout, terms["reward"], config.policy.batch_edits):
            recent = memory.recent(campaign.id, RECENT, whole=True)
            metrics |= diversity([one for one in recent if one.index])
        experiment = self._experiment(
            campaign,
            index,
            outcome,
            result.training_s,
            parent_index=parent.index,
            incumbent_value=base.value,
            source=edit.source,
            source_hash=source_hash(edit.source) if edit.source else "",
            diff=edit.diff,
            summary=edit.summary,
            prompt=rollout.prompt,
            completion=rollout.completion,
            reward=terms["reward"],
            reward_terms=terms,
            extra={"update": metrics} if metrics else {},
        )
        memory.commit_iteration(experiment, progress.to_state())
        if metrics or not progress.waiting:
            seen = outcome.value if outcome.status is Status.KEPT else best.value
            self.say(f"#{index} {progress.spent_s / 3600:.1f} h, best seen {seen:.4f} {_short(metrics)}")

    def _learn(self, policy: Any, progress: Progress, rollout: Any, reward: float, batch: int) -> dict[str, float]:
        """Keep a reward until there are enough for an update; return the update's metrics, {} when there was none."""
        if not self.learn:
            return {}
        progress.pending.append((rollout, reward))
        if len(progress.pending) < batch:
            return {}
        metrics: dict[str, float] = policy.update(*map(list, zip(*progress.pending, strict=True)))
        progress.pending = []
        progress.updates += 1
        # One of three places in turn: the state that is committed names the one before until this one is committed too.
        name = f"step{progress.updates % 3}"
        progress.checkpoint = [name, policy.save(self.folder / "policy" / name)]
        return metrics

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


def begun_within(hours: float, experiments: list[Experiment]) -> list[Experiment]:
    """Return the experiments that began before the simulated hours were used."""
    spent_s = 0.0
    for count, one in enumerate(experiments):
        if spent_s >= hours * 3600:
            return experiments[:count]
        spent_s += one.costs["simulated"]
    return experiments


def refused(edit: Patch) -> RunResult:
    """An edit that is not run: it costs the policy's time only."""
    return RunResult(Ending.REJECTED, Cause.NONE, edit.reason, training_s=REFUSED_S)


def _short(metrics: dict[str, float]) -> str:
    shown = ("reward_batch_mean", "entropy", "kl_ref", "explained_variance", "proposals_new", "proposals_levers")
    return " ".join(f"{name} {metrics[name]:.3g}" for name in shown if name in metrics)
