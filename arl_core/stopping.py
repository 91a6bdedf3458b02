"""From the memory to what a stopping verdict needs, as plain JSON that may travel to another node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from arl_core.config import CampaignConfig
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment
from arl_core.second_look import reference
from arl_core.selfeval import Curve, PastRun, Snapshot, StoppedRun

Key = tuple[str, int]
T = TypeVar("T")


class StoppingHistory:
    """What a campaign's verdicts know of earlier runs. Remembers each run's compact curve: a run never changes.

    Reading all curves anew for every experiment would cost more with every experiment, up to 500 curves a time.
    """

    def __init__(self, memory: Memory, campaign: Campaign, config: CampaignConfig) -> None:
        self._memory, self._campaign, self._config = memory, campaign, config
        self._completed: dict[Key, PastRun] = {}
        self._stopped: dict[Key, StoppedRun] = {}

    def snapshot(self) -> dict[str, Any]:
        """Return a selfeval.Snapshot as JSON: the runs of this campaign, and of earlier ones if the settings say so.

        Earlier campaigns count only when they ran on the same frozen environment: the digest decides.
        """
        memory, campaign, config = self._memory, self._campaign, self._config
        environment = config.environment
        share = environment.check_every_s / environment.budget_s
        checks = [k * share for k in range(1, int(1 / share) + 1) if k * share < 1.0]
        self._completed = self._read(memory.completed_runs, self._completed, self._whole)
        self._stopped = self._read(memory.stopped_runs, self._stopped, _cut)
        snapshot = Snapshot.build(
            self._wanted(self._completed),
            self._wanted(self._stopped),
            direction=campaign.direction,
            alpha=config.stopping.alpha,
            checks=checks,
        )
        incumbent = memory.incumbent(campaign.id)
        if incumbent is not None and incumbent.confirmations:
            # not the best single run, which may have been luck and was perhaps refuted
            snapshot = dataclasses.replace(snapshot, incumbent=reference(incumbent))
        return snapshot.to_json()

    def _read(
        self, find: Callable[..., list[Experiment]], known: dict[Key, T], made: Callable[[Experiment], T]
    ) -> dict[Key, T]:
        """Return the runs that `find` finds, oldest first; curves are read of those that are new here, nearly always the
        last one."""
        digest = self._campaign.environment_digest
        keys = [_key(one) for one in find(digest, curves=False)]
        unknown = [place for place, key in enumerate(reversed(keys), 1) if key not in known]
        found = {_key(one): made(one) for one in find(digest, limit=unknown[-1])} if unknown else {}
        return {key: found[key] if key in found else known[key] for key in keys}

    def _wanted(self, runs: dict[Key, T]) -> list[T]:
        all_count = self._config.stopping.history
        return [run for (campaign, _), run in runs.items() if all_count or campaign == self._campaign.id]

    def _whole(self, one: Experiment) -> PastRun:
        assert one.value is not None, "a completed run was measured"
        own = one.campaign_id == self._campaign.id
        return PastRun.from_curve(Curve.from_reports(one.reports), one.value, one.campaign_id, own=own)


def _cut(one: Experiment) -> StoppedRun:
    return StoppedRun.from_curve(Curve.from_reports(one.reports), one.reports[-1].fraction)


def _key(one: Experiment) -> Key:
    return one.campaign_id, one.index
