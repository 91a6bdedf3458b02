"""What keeps a campaign's experiments comparable from start to start: which settings may change, and each candidate's cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arl_core.config import CampaignConfig, StopSettings, flat, override
from arl_core.errors import ConfigError

# What would make a campaign's experiments incomparable
FIXED = ("environment.", "target.", "seed", "source", "confirm.")


def resumed_settings(recorded: dict[str, Any], overrides: Mapping[str, Any], stop: StopSettings) -> CampaignConfig:
    """Return the settings that a campaign began with (`recorded`), with those that may change on the way overridden.

    What bounds a start (`stop`) is the present one's. Raises ConfigError for a setting that would make its
    experiments incomparable.
    """
    check_changes(flat(recorded), overrides)
    bounds = {f"stop.{name}": value for name, value in stop.model_dump().items()}
    return override(recorded, bounds | dict(overrides))


def check_changes(known: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raise ConfigError when an override would make experiments incomparable. `known`: the campaign's settings by dotted names.

    Repeating what the campaign has is no change.
    """
    for key, value in overrides.items():
        if key.startswith(FIXED) and known.get(key) != value:
            raise ConfigError(
                f"{key} cannot change in a resumed campaign (it has {known.get(key)!r}): its experiments would not compare; "
                "start a new one (--fresh)"
            )
    on_cpu = known.get("environment.device") == "cpu" and not {**known, **overrides}.get("nodes.deployment")
    if on_cpu and overrides.get("parallel", known["parallel"]) != known["parallel"]:
        raise ConfigError(
            f"parallel cannot change in a campaign that is resumed on a CPU (it has {known['parallel']}): candidates would have "
            "another share of the cores, and their values would not compare; start a new one (--fresh)"
        )


def share_cores(config: CampaignConfig, overrides: Mapping[str, Any], cores: int) -> CampaignConfig:
    """Give each of `parallel` candidates on CPU its share of the machine's cores, unless the threads were set by hand.

    The count is part of the frozen environment: it is written into the campaign, and results compare under it alone.
    """
    environment = config.environment
    if config.parallel == 1 or config.nodes.deployment or environment.device != "cpu":
        return config
    if "environment.threads" in overrides:
        return config
    share = max(1, cores // config.parallel)
    return override(config.to_json(), {"environment.threads": min(environment.threads, share)})
