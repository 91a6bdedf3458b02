"""From the memory to what a stopping verdict needs, as plain JSON that may travel to another node."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

from arl_core.config import CampaignConfig
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment
from arl_core.second_look import reference
from arl_core.selfeval import Curve, PastRun, Snapshot, is_judged, stands_for

AUDIT_FIELD = "audit"  # in an experiment's extra: the share audited, and whether this one was


def is_audited(config: CampaignConfig, index: int) -> bool:
    """Was this experiment drawn for the audit? By seed and index alone: no result decides, and a resumed run is drawn again.

    A systematic sample: each 1 / share experiments in a row hold one, from a first that the seed draws. Independent draws leave
    some seeds without any for a whole night, 0 among them.
    """
    share, start = config.stopping.audit_share, random.Random(f"audit/{config.seed}").random()
    return math.floor(start + index * share) > math.floor(start + (index - 1) * share)


def audit_fields(config: CampaignConfig, index: int) -> dict[str, Any]:
    """What an experiment's record must say of the audit, for ever: settings may change."""
    if config.stopping.rule != "ours":
        return {}
    return {AUDIT_FIELD: {"drawn": is_audited(config, index), "share": config.stopping.audit_share}}


class StoppingHistory:
    """What a campaign's verdicts know of completed runs. Remembers each run's compact curve: a run never changes.

    Reading all curves anew for every experiment would cost more with every experiment, up to 500 curves a time.
    """

    def __init__(self, memory: Memory, campaign: Campaign, config: CampaignConfig) -> None:
        self._memory, self._campaign, self._config = memory, campaign, config
        self._runs: dict[tuple[str, int], PastRun] = {}

    def snapshot(self, index: int) -> dict[str, Any]:
        """Return what experiment `index` is judged by, a selfeval.Snapshot as JSON: completed runs of this campaign, and of
        earlier ones if the settings say so.

        Earlier campaigns count only when they ran on the same frozen environment, which the digest says, and on the same device.
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
        return dataclasses.replace(snapshot, audited=is_audited(config, index)).to_json()

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
                known[one.campaign_id, one.index] = _past_run(one, own=one.campaign_id == campaign.id)
        self._runs = known
        all_count = self._config.stopping.history
        return [known[key] for key in keys if key in known and (all_count or key[0] == campaign.id)]


def _past_run(one: Experiment, own: bool) -> PastRun:
    assert one.value is not None
    run = PastRun.from_curve(Curve.from_reports(one.reports), one.value, one.campaign_id, own=own)
    audit = one.extra.get(AUDIT_FIELD) or {}  # records from before the audit have none
    sampled = bool(audit.get("drawn")) or not is_judged(one.verdicts)
    return dataclasses.replace(
        run, stands_for=stands_for(one.verdicts, float(audit.get("share", 0.0))), sampled=sampled
    )
