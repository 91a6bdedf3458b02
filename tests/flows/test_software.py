"""A campaign that goes on says what changed below it."""

from __future__ import annotations

import pytest

from flows.software import changed, software

VERSION = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22-A23)
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"


@pytest.mark.parametrize(
    ("text", "driver"), [(VERSION, "580.95.05"), (PROPRIETARY, "535.183.01"), ("unknown", None), (None, None)]
)
def test_the_versions_are_those_of_the_packages_and_of_the_driver(tmp_path, text, driver):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    found = software(path)
    assert found["torch"].startswith("2.")
    assert found.get("driver") == driver


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"torch": "2.13"}, ""),
        ({"torch": "2.13", "driver": "1"}, {"torch": "2.13", "driver": "1"}, ""),
        ({"torch": "2.13"}, {"torch": "2.14"}, "torch 2.13 → 2.14 since"),
        (
            {"torch": "2.13", "driver": "1.0"},
            {"torch": "2.13", "driver": "2.0", "triton": "3"},
            "driver 1.0 → 2.0, triton none → 3",
        ),
    ],
)
def test_what_changed_since_a_campaign_last_began_is_said(before, now, told):
    words = changed(before, now)
    assert told in words
    assert bool(words) is bool(told)
