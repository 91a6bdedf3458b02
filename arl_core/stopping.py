"""From the memory to what a stopping verdict needs, as plain JSON that may travel to another node."""

from __future__ import annotations

import dataclasses
from typing import Any

from arl_core.config import CampaignConfig
from arl_core.memory import Memory
from arl_core.records import Campaign
from arl_core.second_look import reference
from arl_core.selfeval import Curve, PastRun, Snapshot


class StoppingHistory:
    """What a campaign's verdicts know of completed runs. Remembers each run's compact curve: a run never changes.

    Reading all curves anew for every experiment would cost more with every experiment, up to 500 curves a time.
    """

    def __init__(self, memory: Memory, campaign: Campaign, config: CampaignConfig) -> None:
        self._memory, self._campaign, self._config = memory, campaign, config
        self._runs: dict[tuple[str, int], PastRun] = {}

    def snapshot(self) -> dict[str, Any]:
        """Return a selfeval.Snapshot as JSON: completed runs of this campaign, and of earlier ones if the settings say so.

        Earlier campaigns count only when they ran on the same frozen environment: the digest decides.
        """
        memory, campaign, config = self._memory, self._campaign, self._config
        environment = config.environment
        share = environment.check_every_s / environment.budget_s
        checks = [k * share for k in range(1, int(1 / share) + 1) if k * share < 1.0]
        snapshot = Snapshot.build(
            self._completed(), direction=campaign.direction, alpha=config.stopping.alpha, checks=checks
        )
        incumbent = memory.incumbent(campaign.id)
        if incumbent is not None:
            # not the best single run that the snapshot knows, which may have been luck and was perhaps refuted
            snapshot = dataclasses.replace(snapshot, incumbent=reference(incumbent))
        return snapshot.to_json()

    def _completed(self) -> list[PastRun]:
        """Completed runs, oldest first; curves are read of those that are new here, nearly always the last one."""
        digest, campaign = self._campaign.environment_digest, self._campaign
        keys = [
            (one.campaign_id, one.index) for one in self._memory.completed_runs(digest, own=campaign.id, curves=False)
        ]
        unknown = [place for place, key in enumerate(reversed(keys), 1) if key not in self._runs]
        known = {key: self._runs[key] for key in keys if key in self._runs}
        for one in self._memory.completed_runs(digest, unknown[-1], own=campaign.id) if unknown else ():
            if one.value is not None:
                curve, own = Curve.from_reports(one.reports), one.campaign_id == campaign.id
                known[one.campaign_id, one.index] = PastRun.from_curve(curve, one.value, one.campaign_id, own=own)
        self._runs = known
        all_count = self._config.stopping.history
        return [known[key] for key in keys if key in known and (all_count or key[0] == campaign.id)]
