"""Read what a report needs from a memory without standing in a running campaign's way.

DuckDB shuts the writer out while anybody reads, so a long campaign is read in many short looks: the light rows at once,
then the bulky parts (sources, curves) one experiment at a time. What is committed meanwhile is in the next report.
"""

from __future__ import annotations

from dataclasses import dataclass

from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, one_line

EVERYTHING = 2**31 - 1


@dataclass(frozen=True)
class CampaignData:
    """A campaign as it stood at one moment: every experiment whole, in order of index."""

    campaign: Campaign
    experiments: list[Experiment]

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
    campaign = memory.get_campaign(campaign_id)
    light = memory.recent(campaign.id, EVERYTHING)[::-1]
    whole = (memory.experiment(campaign.id, one.index) for one in light)
    return CampaignData(campaign, [one for one in whole if one is not None])
