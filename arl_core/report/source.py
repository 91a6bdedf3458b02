"""Read what a report needs from a memory without standing in a running campaign's way.

DuckDB shuts the writer out while anybody reads, so a long campaign is read in many short looks: the light rows at once,
then the bulky parts (sources, curves) one experiment at a time. What is committed meanwhile is in the next report.
"""

from __future__ import annotations

from dataclasses import dataclass

from arl_core.campaign_lock import is_held
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, one_line

EVERYTHING = 2**31 - 1


@dataclass(frozen=True)
class CampaignData:
    """A campaign as it stood at one moment: every experiment whole, in order of index.

    cut_off: its status is "running", and nobody runs it: a kill or a power cut came before an orderly end. reason: why it
    ended, "" when nobody said; untrusted.
    """

    campaign: Campaign
    experiments: list[Experiment]
    cut_off: bool = False
    reason: str = ""

    @property
    def metric(self) -> str:
        """The metric's name as one printable line."""
        return one_line(self.campaign.metric, 40) or "value"

    @property
    def budget_s(self) -> float:
        """Training seconds that a run is given; 0 when the settings do not say."""
        environment = self.campaign.config.get("environment") or {}
        return float(environment.get("budget_s") or 0.0)


def read(memory: Memory, campaign_id: str = "latest") -> CampaignData:
    """Return the campaign. Raises ConfigError when there is none of that id, MemoryFileError as Memory does."""
    held = is_held(memory.path)  # asked before the status: an orderly end notes that first, then lets go
    with memory.reading():
        campaign = memory.get_campaign(campaign_id)
        runs = held and memory.written_last() == campaign.id  # the lock is the memory's, not the campaign's
        reason = memory.status_reason(campaign.id)
    cut_off = campaign.status == "running" and not runs
    light = memory.recent(campaign.id, EVERYTHING)[::-1]
    whole = (memory.experiment(campaign.id, one.index) for one in light)
    return CampaignData(campaign, [one for one in whole if one is not None], cut_off, reason)
