"""Presets and settings: what is right is accepted, what is wrong is named together with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from arl_core.config import CampaignConfig, load_config, parse_overrides, preset_names, setting_names
from arl_core.errors import ConfigError
from arl_core.reference import render


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_survives_json(preset):
    config = load_config(preset)
    assert CampaignConfig.from_json(config.to_json()) == config


def test_overrides_reach_every_depth():
    config = load_config("embedded", {"seed": 7, "environment.budget_s": 5, "policy.clip": 0.1, "target.DEPTH": 2})
    assert (config.seed, config.environment.budget_s, config.policy.clip, config.target["DEPTH"]) == (7, 5, 0.1, 2)


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("embeded", {}, "unknown preset 'embeded'; there are: embedded"),
        ("embedded", {"environment.budget": 3}, "did you mean environment.budget_s"),
        ("embedded", {"budget_s": 3}, "did you mean environment.budget_s"),
        ("embedded", {"policy.clip": 3}, "policy.clip"),
        ("embedded", {"environment.budget_s": -1}, "budget_s must be positive seconds, got -1"),
        ("embedded", {"iterations": "many"}, "iterations"),
        ("embedded", {"stopping.rule": "guess"}, "stopping.rule"),
    ],
)
def test_what_is_wrong_is_named(preset, overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_config(preset, overrides)


def test_command_line_values_are_json_or_text():
    assert parse_overrides(["a.b=1", "c=true", "d=tiny-random", 'e="x"']) == {
        "a.b": 1,
        "c": True,
        "d": "tiny-random",
        "e": "x",
    }


@pytest.mark.parametrize("item", ["novalue", "=3"])
def test_a_command_line_word_without_key_or_value_is_refused(item):
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_overrides([item])


def test_every_setting_can_be_named():
    names = setting_names()
    assert {"seed", "environment.budget_s", "policy.clip", "reward.scale", "stopping.alpha", "prompt.recent"} <= set(
        names
    )
    assert len(names) == len(set(names))


def test_the_reference_of_settings_is_up_to_date():
    page = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == render(), "run: python -m arl_core.reference > docs/settings.md"


def test_the_sandbox_has_a_short_name() -> None:
    assert load_config("embedded", {"sandbox": "off"}).environment.sandbox == "off"
