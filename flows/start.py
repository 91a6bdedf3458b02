"""Which campaign a start runs: a new one, one named by the user, the latest line of research, or the one it began before.

A flow run that is retried (`prefect flow-run retry`) goes on with the campaign that it began, to the end that it had then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect.context import FlowRunContext

from arl_core.config import CampaignConfig, load_config, override
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import Campaign
from arl_core.stop_conditions import deadline
from flows.surroundings import ROOT
from frozen_env.description import BUILT_IN

# What would make a campaign's experiments incomparable
FIXED = ("environment.", "target.", "seed", "source", "confirm.")


@dataclass(frozen=True)
class Start:
    """`resume` is the campaign to go on with, None for a new one; `first` is the first index of a start that is retried;
    `per_start`: iterations count from this start on, and not from experiment 0."""

    config: CampaignConfig
    resume: str | None = None
    first: int | None = None
    per_start: bool = False

    def last_index(self, next_index: int) -> int:
        """Return the index of the last experiment of this start, when `next_index` is the first that is missing."""
        if not self.per_start:
            return self.config.iterations
        first = next_index if self.first is None else self.first
        return max(first, 1) + self.config.iterations - 1


def plan(preset: str, iterations: int | None, resume: str | None, settings: dict[str, Any], fresh: bool) -> Start:
    """Decide. Raises ConfigError that names what is wrong, MemoryFileError when the memory cannot be read."""
    overrides = settings | ({} if iterations is None else {"iterations": iterations})
    config = share_cores(load_config(preset, overrides), overrides)
    if config.stop.until:
        try:
            deadline(config.stop.until, datetime.now().astimezone())
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if resume and fresh:
        raise ConfigError(f"resume ({resume!r}) and fresh exclude each other: give one of them")
    if resume:
        return Start(_resumed(config, resume, overrides), resume)
    path = ROOT / config.memory
    if not path.exists():
        return Start(config, per_start=config.continues)
    with contextlib.closing(Memory(path, read_only=True)) as memory:
        begun = _begun_by_this_flow_run(memory)
        if begun is not None:
            campaign, first = begun
            return Start(override(campaign.config, overrides), campaign.id, first, config.continues)
        if fresh or not config.continues:
            return Start(config, per_start=config.continues)
        line = next((one for one in reversed(memory.campaigns()) if _continues(one, config)), None)
    if line is None:
        return Start(config, per_start=True)
    overrides["iterations"] = config.iterations
    return Start(_resumed(config, line.id, overrides), line.id, per_start=True)


def flow_run_id() -> str:
    """The id of the flow run that we are in; '' outside."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def _continues(one: Campaign, config: CampaignConfig) -> bool:
    """Whether a campaign is of the same line of research: preset and problem."""
    problem = dict(one.config.get("environment") or {}).get("problem", BUILT_IN)
    return one.preset == config.preset and problem == config.environment.problem


def _begun_by_this_flow_run(memory: Memory) -> tuple[Campaign, int] | None:
    mine = flow_run_id()
    for campaign in reversed(memory.campaigns()[-20:]) if mine else ():
        state = memory.state(campaign.id)
        start = state.values.get("start", {}) if state else {}
        if start.get("flow_run") == mine:
            return campaign, int(start["first"])
    return None


def _resumed(config: CampaignConfig, resume: str, overrides: dict[str, Any]) -> CampaignConfig:
    """The settings that a campaign began with, with those that may change on the way overridden.

    What bounds a start (`stop`) is the present one's. Raises ConfigError for a setting that would make its
    experiments incomparable.
    """
    with contextlib.closing(Memory(ROOT / config.memory, read_only=True)) as memory:
        recorded = memory.get_campaign(resume).config
    known = dict(_flat(recorded))
    for key, value in overrides.items():
        if key.startswith(FIXED) and known.get(key) != value:
            raise ConfigError(
                f"{key} cannot change in a resumed campaign (it has {known.get(key)!r}): its experiments would not compare; "
                "start a new one (--fresh)"
            )
    bounds = {f"stop.{name}": value for name, value in config.stop.model_dump().items()}
    return override(recorded, bounds | overrides)


def share_cores(config: CampaignConfig, overrides: dict[str, Any]) -> CampaignConfig:
    """Give each of `parallel` candidates on CPU its share of the cores, unless the threads were set by hand.

    The count is part of the frozen environment: it is written into the campaign, and results compare under it alone.
    """
    environment = config.environment
    if config.parallel == 1 or config.nodes.deployment or environment.device != "cpu":
        return config
    if "environment.threads" in overrides:
        return config
    share = max(1, (os.cpu_count() or 1) // config.parallel)
    return override(config.to_json(), {"environment.threads": min(environment.threads, share)})


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
