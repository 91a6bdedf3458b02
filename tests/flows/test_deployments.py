"""Every deployment in prefect.yaml names a flow that is there, with parameters that it takes and a preset that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.importtools import import_object

from arl_core.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


def entrypoint_flow(deployment: dict) -> Flow:
    return import_object(deployment["entrypoint"].replace(".py", "").replace("/", ".").replace(":", "."))


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])
def test_a_deployment_resolves(deployment):
    found = entrypoint_flow(deployment)
    assert isinstance(found, Flow)
    known = set(found.parameters.properties)
    assert set(deployment.get("parameters", {})) <= known
    if "preset" in deployment.get("parameters", {}):
        config = load_config(deployment["parameters"]["preset"], {})
        assert config.iterations > 0
    for schedule in deployment.get("schedules", []):
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])


def test_the_names_that_scripts_rely_on_are_there():
    names = {f"{entrypoint_flow(one).name}/{one['name']}" for one in DEPLOYMENTS}
    assert {"research/overnight", "research/embedded"} <= names


def test_overnight_runs_every_night():
    (overnight,) = [one for one in DEPLOYMENTS if one["name"] == "overnight"]
    assert [schedule["cron"].split()[2:] for schedule in overnight["schedules"]] == [["*", "*", "*"]]
