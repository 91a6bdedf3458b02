"""Which campaign a start runs: a new one, one named by the user, the latest line of research, or the one it began before.

A flow run that is retried (`prefect flow-run retry`) goes on with the campaign that it began, to the end and the deadline that
it had then: a "07:00" that has passed is not tomorrow's.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect.context import FlowRunContext

from arl_core.config import CampaignConfig, full_names, load_config
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import Campaign
from arl_core.resuming import resumed_settings, share_cores
from arl_core.stop_conditions import deadline
from flows.surroundings import ROOT
from frozen_env.description import BUILT_IN


@dataclass(frozen=True)
class Start:
    """`resume` is the campaign to go on with, None for a new one; `per_start`: iterations count from this start on, and not
    from experiment 0; `first` and `last` are the bounds of an earlier start that this one finishes."""

    config: CampaignConfig
    resume: str | None = None
    first: int | None = None
    last: int | None = None
    per_start: bool = False

    def last_index(self, next_index: int) -> int:
        """Return the index of the last experiment of this start, when `next_index` is the first that is missing."""
        if not self.per_start:
            return self.config.iterations
        if self.last is not None:
            return self.last
        first = next_index if self.first is None else self.first
        return max(first, 1) + self.config.iterations - 1


def plan(preset: str, iterations: int | None, resume: str | None, settings: dict[str, Any], fresh: bool) -> Start:
    """Decide. Raises ConfigError that names what is wrong, MemoryFileError when the memory cannot be read."""
    overrides = full_names(settings) | ({} if iterations is None else {"iterations": iterations})
    config = _in_time(share_cores(load_config(preset, overrides), overrides, os.cpu_count() or 1))
    if resume and fresh:
        raise ConfigError(f"resume ({resume!r}) and fresh exclude each other: give one of them")
    if resume:
        return _by_hand(config, resume, overrides, iterations)
    path = ROOT / config.memory
    if not path.exists():
        return Start(config, per_start=config.continues)
    with contextlib.closing(Memory(path, read_only=True)) as memory:
        begun = _begun_by_this_flow_run(memory)
        line = None
        if begun is None and config.continues and not fresh:
            line = next((one for one in reversed(memory.campaigns()) if _continues(one, config, memory)), None)
    overrides["iterations"] = config.iterations
    if begun is not None:
        campaign, start = begun
        overrides |= {"stop.until": start["until"]} if start.get("until") else {}
        resumed = _in_time(_resumed(config, campaign.id, overrides))
        return Start(resumed, campaign.id, **_bounds(start), per_start=config.continues)
    if line is None:
        return Start(config, per_start=config.continues)
    return Start(_resumed(config, line.id, overrides), line.id, per_start=True)


def _in_time(config: CampaignConfig) -> CampaignConfig:
    """Return the settings. Raises ConfigError when their deadline has passed."""
    if config.stop.until:
        try:
            deadline(config.stop.until, datetime.now().astimezone())
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return config


def _by_hand(config: CampaignConfig, resume: str, overrides: dict[str, Any], iterations: int | None) -> Start:
    """Go on with a campaign that was named. One that continues night after night first finishes the start that was cut off."""
    found = _resumed(config, resume, overrides)
    if not found.continues:
        return Start(found, resume)
    with contextlib.closing(Memory(ROOT / config.memory, read_only=True)) as memory:
        state = memory.state(resume)
        bounds = _bounds(state.values.get("start", {}) if state else {})
        last = Start(found, resume, **bounds, per_start=True).last_index(0) if bounds else -1
        unfinished = memory.next_index(resume) <= last or bool(memory.missing_indices(resume))
    if iterations is None and unfinished:
        return Start(found, resume, **bounds, per_start=True)
    return Start(found, resume, per_start=True)


def _bounds(start: dict[str, Any]) -> dict[str, int]:
    """First and last experiment of a start as the campaign's state names them; without the last in older memories."""
    return {name: int(start[name]) for name in ("first", "last") if name in start}


def flow_run_id() -> str:
    """The id of the flow run that we are in; '' outside."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def _continues(one: Campaign, config: CampaignConfig, memory: Memory) -> bool:
    """Whether a campaign is of the same line of research (preset and problem), and one that can go on: where experiment 0
    has failed, nothing follows."""
    problem = dict(one.config.get("environment") or {}).get("problem", BUILT_IN)
    if one.preset != config.preset or problem != config.environment.problem:
        return False
    return memory.next_index(one.id) == 0 or memory.incumbent(one.id) is not None


def _begun_by_this_flow_run(memory: Memory) -> tuple[Campaign, dict[str, Any]] | None:
    """The campaign that an earlier attempt of this flow run went on with, and what it noted of its start (note_start)."""
    mine = flow_run_id()
    for campaign in reversed(memory.campaigns()[-20:]) if mine else ():
        state = memory.state(campaign.id)
        start = state.values.get("start", {}) if state else {}
        if start.get("flow_run") == mine:
            return campaign, start
    return None


def _resumed(config: CampaignConfig, resume: str, overrides: dict[str, Any]) -> CampaignConfig:
    """The settings of a campaign to go on with. Raises ConfigError for a change that would make experiments incomparable."""
    with contextlib.closing(Memory(ROOT / config.memory, read_only=True)) as memory:
        return resumed_settings(memory.get_campaign(resume).config, overrides, config.stop)
