"""The figure of bench.scaling from its rows."""

from __future__ import annotations

from bench.scaling import speedup


def row(seconds: float, startup_s: float, runs: int = 24) -> dict[str, float]:
    return {"seconds": seconds, "startup_s": startup_s, "runs": runs, "slot_use": 0.9}


def test_a_speedup_is_the_fewest_slots_time_over_the_others():
    figures = speedup({4: row(420.0, 7.0), 1: row(1600.0, 4.0), 2: row(800.0, 5.0)}, 24)
    assert figures["speedup"] == {"2": 2.0, "4": 3.81}
    assert figures["startup_s"] == {"1": 4.0, "2": 5.0, "4": 7.0}


def test_with_re_runs_it_is_runs_per_second_that_are_compared():
    assert speedup({1: row(1000.0, 4.0, runs=20), 4: row(500.0, 4.0, runs=30)}, 16)["speedup"] == {"4": 3.0}
