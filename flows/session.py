"""What a campaign holds while it runs: memory, slots, policy, display, and what is not settled yet. opening.py opens and closes it.

Resuming reads the memory alone: the last committed state names the policy checkpoint and carries what is not settled, the
rollouts that wait for an update and the runs that wait for their second look. What was running is proposed anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arl_core.config import CampaignConfig
from arl_core.errors import CheckpointDamaged, PolicyError
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State, device_of
from arl_core.report.findings import change_since
from arl_core.stopping import StoppingHistory
from flows.display import Display
from flows.slots import Slots
from flows.unsettled import Landed, pack, unpack
from frozen_env.contract import ResearchError, RunResult
from frozen_env.fetch import data_dir
from tasks.show import LEADERS, Picture, UiArtifacts
from tasks.update import CHECKPOINTS_KEPT

if TYPE_CHECKING:
    from arl_core.policy.proposers import Proposer
    from arl_core.policy.rollout import Rollout
    from flows.costs import Costs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A policy checkpoint as the memory names it: its folder, its sha256, and the number of updates behind it."""

    name: str
    digest: str
    step: int


@dataclass
class Session:
    """A running campaign's open things."""

    config: CampaignConfig
    campaign: Campaign
    memory: Memory
    slots: Slots
    display: Display
    folder: Path
    last_index: int = 0
    start: dict[str, Any] = field(default_factory=dict)  # which flow run this is, and its first experiment
    pending: list[tuple[Rollout, float]] = field(default_factory=list)  # with their rewards, for the next update
    landed: dict[int, Landed] = field(default_factory=dict)  # by index: first runs whose second look is not over
    checkpoints: list[Checkpoint] = field(default_factory=list)  # oldest first, as many as are kept
    after_commit: Costs | None = None
    artifacts: UiArtifacts | None = None
    out_of_time: Callable[[int], str] = lambda _rounds: (
        ""
    )  # asked before re-runs: do that many, one after the other, end in time?
    at_once: Callable[[], int] = lambda: 0  # slots that the second look under way may fill; 0: its runs go one by one
    side_by_side: bool = False  # a loop proposes and learns beside second looks
    ran: Callable[[RunResult], None] = lambda _result: None  # told of every run of this start, from whichever thread
    _policy: Proposer | None = None
    _device: str = ""  # of experiment 0; "" before it is committed, and where no worker told

    def check_device(self, index: int, result: RunResult) -> None:
        """Raise ResearchError when a run was on another kind of device than experiment 0: what it gained may be the device's.

        A time budget buys more training on a faster GPU, and pairs reuse the incumbent's earlier runs.
        """
        if not self._device and (first := self.memory.experiment(self.campaign.id, 0)) is not None:
            self._device = device_of(first.extra)
        there = device_of(result.extra)
        if self._device and there and there != self._device:
            raise ResearchError(
                f"experiment {index} ran on {there}, this campaign's experiment 0 on {self._device}: "
                "their values would not compare. Resume where it began, keep nodes of one kind under its work pool, "
                "or start anew (--fresh)"
            )

    @functools.cached_property
    def history(self) -> StoppingHistory:
        """What stopping verdicts know of completed runs."""
        return StoppingHistory(self.memory, self.campaign, self.config)

    @property
    def policy_step(self) -> int:
        """How many updates the policy has had."""
        return self.checkpoints[-1].step if self.checkpoints else 0

    def add_checkpoint(self, name: str, digest: str, step: int) -> None:
        self.checkpoints = [*self.checkpoints, Checkpoint(name, digest, step)][-CHECKPOINTS_KEPT:]

    @property
    def policy_folder(self) -> Path:
        return self.folder / "policy"

    @property
    def runs_folder(self) -> Path:
        """mlruns/: the memory, MLflow's store, one folder per campaign."""
        return self.folder.parent.parent

    def place(self, index: int) -> Path:
        return self.folder / f"experiment_{index:05d}"

    def policy(self) -> Proposer:
        """The policy, loaded at first use: experiment 0 needs none."""
        if self._policy is None:
            from arl_core.policy.proposers import load_proposer

            self.display.phase("loading the policy")
            self._policy = load_proposer(self.config.policy, data_dir(), self.display.say, self.config.problem())
            self._restore()
        return self._policy

    def make_room(self) -> None:
        """Leave the candidate what GPU memory the policy can spare; it comes back when it is asked next."""
        if self._policy is not None:
            self._policy.make_room()

    def rehearse(self, source: str) -> None:
        """Have a policy from elsewhere answer once before anything is trained: what it lacks shall not end a night in an hour.

        Raises PolicyError. The embedded one was put here by us.
        """
        if self.config.policy.proposer not in ("policy", "endpoint"):
            return
        if self.config.policy.model in ("embedded", "tiny-random"):
            return
        policy = self.policy()
        self.display.phase("the policy's rehearsal")
        policy.rehearse(source, self.config.seed)
        self.make_room()

    def __post_init__(self) -> None:
        """Take up what the last committed state says is waiting, for an update or for a second look."""
        state = self.memory.state(self.campaign.id)
        if state is None:
            return
        self.pending, landed = unpack(state.blob)
        self.landed = {one.proposal.index: one for one in landed}
        self.checkpoints = [Checkpoint(*one) for one in state.values.get("checkpoints", [])]

    def keep(self, landed: Landed) -> None:
        """Commit a first run whose second look is to come: from here on a kill loses none of it."""
        if landed.proposal.index not in self.landed:
            self.landed[landed.proposal.index] = landed
            self.commit_state()

    def commit_state(self) -> None:
        """Commit what is not settled as it stands between two experiments."""
        last = self.memory.next_index(self.campaign.id) - 1
        self.memory.commit_state(self.campaign.id, dataclasses.replace(self.state(), index=last))

    def _restore(self) -> None:
        """Bring the policy to the last committed state; a torn checkpoint falls back to the one before."""
        assert self._policy is not None
        steps = self.policy_step
        while self.checkpoints:
            last = self.checkpoints[-1]
            try:
                self._policy.restore(self.policy_folder / last.name, last.digest)
                return
            except CheckpointDamaged as error:  # one that does not fit the settings is whole: nothing may replace it
                self.display.say(f"warning: {error}; falling back to the checkpoint before")
                self.checkpoints.pop()
        if steps > CHECKPOINTS_KEPT:
            raise PolicyError(
                f"no checkpoint of campaign {self.campaign.id} can be read; restore {self.policy_folder} from a backup, or start a "
                "new campaign (its experiments stay in the memory)"
            )
        if steps:
            self.display.say("warning: the policy starts again from its warm start, as no checkpoint of it can be read")

    def show(self, index: int) -> None:
        """Have Prefect's page show how the campaign stands. Returns at once; the memory is asked in the background."""
        if self.artifacts is not None:
            self.artifacts.show(lambda: self._picture(index))

    def _picture(self, index: int) -> Picture:
        leaders = tuple(self.memory.top(self.campaign.id, LEADERS))
        best = self.memory.incumbent(self.campaign.id)
        diff = ""
        if best is not None:
            leaders = (best, *(one for one in leaders if one.index != best.index))
            first = (self.folder / "seed_train.py").read_text(encoding="utf-8")
            diff = change_since(first, best)
        return Picture(self.campaign.id, index, self.last_index, leaders[:LEADERS], diff)

    def state(self) -> State:
        """The state to commit with the experiment in hand."""
        checkpoints = [dataclasses.astuple(one) for one in self.checkpoints]
        values = {"checkpoints": checkpoints, "policy_step": self.policy_step, "start": self.start}
        return State(values=values, blob=pack(self.pending, self.landed.values()))

    def indices(self) -> Iterator[int]:
        """The experiments to propose in this start: those that a killed campaign left out, then the next ones to the last."""
        missing = self.memory.missing_indices(self.campaign.id)
        following = range(self.memory.next_index(self.campaign.id), self.last_index + 1)
        landed = set(self.landed)  # as it is now: they are settled, and gone from there, before the first is asked for
        return (index for index in itertools.chain(missing, following) if index not in landed)

    def tidy(self, experiment: Experiment, keep_weights: bool) -> None:
        """Remove what an experiment's run left on disk, except its log and, if wanted, its weights."""
        place = self.place(experiment.index)
        for part in ("scratch", "candidate", *(() if keep_weights else ("submission",))):
            shutil.rmtree(place / part, ignore_errors=True)
