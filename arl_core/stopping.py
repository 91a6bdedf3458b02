"""From the memory to what a stopping verdict needs, as plain JSON that may travel to another node."""

from __future__ import annotations

import dataclasses
from typing import Any

from arl_core.config import CampaignConfig
from arl_core.memory import Memory
from arl_core.records import Campaign
from arl_core.second_look import reference
from arl_core.selfeval import Curve, PastRun, Snapshot


def stopping_snapshot(memory: Memory, campaign: Campaign, config: CampaignConfig) -> dict[str, Any]:
    """Return a selfeval.Snapshot as JSON: completed runs of this campaign, and of earlier ones if the settings say so.

    Earlier campaigns count only when they ran on the same frozen environment: the digest decides.
    """
    runs = [
        PastRun.from_curve(
            Curve.from_reports(one.reports), one.value, one.campaign_id, own=one.campaign_id == campaign.id
        )
        for one in memory.completed_runs(campaign.environment_digest)
        if one.value is not None and (config.stopping.history or one.campaign_id == campaign.id)
    ]
    environment = config.environment
    share = environment.check_every_s / environment.budget_s
    checks = [k * share for k in range(1, int(1 / share) + 1) if k * share < 1.0]
    snapshot = Snapshot.build(runs, direction=campaign.direction, alpha=config.stopping.alpha, checks=checks)
    incumbent = memory.incumbent(campaign.id)
    if incumbent is not None and incumbent.confirmations:
        # not the best single run, which may have been luck and was perhaps refuted
        snapshot = dataclasses.replace(snapshot, incumbent=reference(incumbent))
    return snapshot.to_json()
