"""The figure of bench.scaling from its rows."""

from __future__ import annotations

from bench.scaling import speedup


def test_a_speedup_is_the_fewest_slots_time_over_the_others():
    rows = {4: {"seconds": 420.0, "startup_s": 7.0}, 1: {"seconds": 1600.0, "startup_s": 4.0}}
    rows[2] = {"seconds": 800.0, "startup_s": 5.0}
    figures = speedup(rows, 24)
    assert figures["speedup"] == {"2": 2.0, "4": 3.81}
    assert figures["startup_s"] == {"1": 4.0, "2": 5.0, "4": 7.0}
