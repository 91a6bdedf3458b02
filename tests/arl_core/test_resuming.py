"""What may change in a resumed campaign, and how many cores a candidate gets."""

from __future__ import annotations

from typing import Any

import pytest

from arl_core.config import load_config
from arl_core.errors import ConfigError
from arl_core.resuming import resumed_settings, share_cores

PRESENT = load_config("embedded", {"stop.plateau": 5}).stop


def recorded(**settings: Any) -> dict[str, Any]:
    return load_config("embedded", settings).to_json()


@pytest.mark.parametrize(
    "key", ["environment.budget_s", "environment.device", "target.DEPTH", "seed", "source", "confirm.enabled"]
)
def test_what_makes_experiments_incomparable_is_refused_by_its_name(key):
    with pytest.raises(ConfigError, match=rf"{key} cannot change in a resumed campaign"):
        resumed_settings(recorded(), {key: "another"}, PRESENT)


def test_repeating_what_the_campaign_has_is_no_change():
    known = recorded(**{"environment.budget_s": 7.0})
    assert resumed_settings(known, {"environment.budget_s": 7.0}, PRESENT).environment.budget_s == 7.0


def test_the_rest_is_the_campaigns_own_with_overrides_and_the_limits_of_this_start():
    known = recorded(**{"policy.temperature": 0.7, "stop.hours": 1.0})
    found = resumed_settings(known, {"policy.entropy_coef": 0.03}, PRESENT)
    assert (found.policy.temperature, found.policy.entropy_coef) == (0.7, 0.03)
    assert (found.stop.hours, found.stop.plateau) == (None, 5)
    assert known["stop"]["hours"] == 1.0, "the record stays what it was"


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"environment.device": "cpu"}, False),
        ({"environment.device": "cpu", "nodes.deployment": "experiment/node"}, True),
        ({"environment.device": "cuda"}, True),
    ],
    ids=["cpu", "nodes", "gpus"],
)
def test_on_a_cpu_of_ones_own_candidates_keep_their_share_of_the_cores(settings, allowed):
    known = recorded(parallel=2, **settings)
    if allowed:
        assert resumed_settings(known, {"parallel": 4}, PRESENT).parallel == 4
        return
    with pytest.raises(ConfigError, match=r"parallel cannot change .* \(it has 2\)"):
        resumed_settings(known, {"parallel": 4}, PRESENT)


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"parallel": 8}, 1),
        ({"parallel": 4}, 2),
        ({"parallel": 16}, 1),
        ({"parallel": 1}, 2),
        ({"parallel": 8, "environment.threads": 2}, 2),
        ({"parallel": 8, "nodes.deployment": "experiment/node"}, 2),
        ({"parallel": 8, "environment.device": "cuda"}, 2),
    ],
)
def test_candidates_side_by_side_share_eight_cores(settings, threads):
    assert share_cores(load_config("embedded", settings), settings, cores=8).environment.threads == threads
