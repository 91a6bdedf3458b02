"""Every deployment in prefect.yaml names a flow that is there, with parameters that it takes and a preset that loads."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.importtools import import_object

from arl_core.config import load_config
from bench.cluster import Cluster

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


@pytest.mark.timeout(900)
def test_a_server_starts_what_is_scheduled(server: Cluster):
    """With SQLAlchemy 2.1 the scheduler of Prefect 3.8.8 fails, and tells nobody but its log."""
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def post(path: str, **body: object) -> dict:
            return client.post(path, json=body).raise_for_status().json()

        flow = post("/flows/", name="nightly")
        cron = {"schedule": {"cron": "0 21 * * *", "timezone": "UTC"}, "active": True}
        deployment = post("/deployments/", name="nightly", flow_id=flow["id"], schedules=[cron])
        deadline_s = time.monotonic() + 600
        while not (runs := post("/flow_runs/filter", deployments={"id": {"any_": [deployment["id"]]}})):
            assert time.monotonic() < deadline_s, (server.folder / "server.log").read_text()[-4000:]
            time.sleep(0.5)
        client.delete(f"/deployments/{deployment['id']}").raise_for_status()
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    assert all(run["state"]["state_details"]["scheduled_time"][11:19] == "21:00:00" for run in runs)
