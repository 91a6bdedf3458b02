"""Each limit stops by itself, at its own number, and says which it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from arl_core.config import StopSettings
from arl_core.records import Experiment
from arl_core.stop_conditions import StopConditions, deadline
from frozen_env.contract import Ending, RunResult, Status

NIGHT = datetime(2026, 11, 24, 21, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Local time is UTC, or what the test makes it."""

    def make(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    make("UTC")
    yield make
    monkeypatch.undo()
    time.tzset()


class Clocks:
    """A monotonic clock in seconds and a clock on the wall, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.wall = NIGHT

    def conditions(self, experiment_s: float = 300.0, **limits: object) -> StopConditions:
        return StopConditions(StopSettings(**limits), experiment_s, lambda: self.now_s, lambda: self.wall)


def experiment(index: int, status: Status = Status.DISCARDED) -> Experiment:
    return Experiment("c", index, status)


def a_run(training_s: float) -> RunResult:
    return RunResult(Ending.FINISHED, startup_s=10.0, training_s=training_s, scoring_s=5.0)


def test_without_limits_nothing_stops():
    stop = Clocks().conditions()
    for index in range(1000):
        stop.begin()
        stop.ran(a_run(3600))
        stop.settled(experiment(index))
    assert stop.reason() == ""


def test_experiments_are_counted_when_they_begin():
    stop = Clocks().conditions(experiments=2)
    stop.begin()
    assert stop.reason() == ""
    stop.begin()
    assert "stop.experiments" in stop.reason()


def test_no_experiment_begins_that_would_end_after_the_hours():
    clocks = Clocks()
    stop = clocks.conditions(hours=1.0)
    clocks.now_s += 3300
    assert stop.reason() == ""
    clocks.now_s += 1
    assert "stop.hours" in stop.reason()


def test_start_up_and_scoring_of_the_runs_so_far_count_as_what_one_more_would_take():
    clocks = Clocks()
    stop = clocks.conditions(hours=1.0)
    stop.ran(a_run(training_s=420.0))  # 435 s with its start-up and scoring
    stop.ran(RunResult(Ending.CRASHED, startup_s=900.0))  # says nothing of the next
    clocks.now_s += 3600 - 435
    assert stop.reason() == ""
    clocks.now_s += 1
    assert "stop.hours" in stop.reason()


def test_several_runs_one_after_the_other_need_as_much_more_time():
    stop = Clocks().conditions(hours=1.0)
    rounds = next(n for n in range(1, 10_000) if stop.out_of_time(n))
    assert stop.out_of_time() == ""
    assert rounds == 3600 // stop._experiment_s + 1


def test_hours_do_not_care_for_jumps_of_the_wall_clock():
    clocks = Clocks()
    stop = clocks.conditions(hours=1.0)
    clocks.wall += timedelta(days=365)
    assert stop.reason() == ""
    clocks.wall -= timedelta(days=730)
    clocks.now_s += 3601
    assert "stop.hours" in stop.reason()


def test_a_time_of_day_is_read_off_the_wall():
    clocks = Clocks()
    stop = clocks.conditions(until="07:00")
    clocks.wall = datetime(2026, 11, 25, 6, 55, tzinfo=UTC)
    assert stop.reason() == ""
    clocks.wall += timedelta(seconds=1)
    assert "2026-11-25 07:00 (stop.until)" in stop.reason()


def test_the_night_in_which_clocks_change_is_as_long_as_it_is(zone: Callable[[str], None]):
    zone("CET-1CEST,M3.5.0,M10.5.0/3")
    evening = datetime(2026, 10, 24, 19, 0, tzinfo=UTC)  # 21:00 in summer; the clocks go back at three
    assert deadline("07:00", evening) == datetime(2026, 10, 25, 6, 0, tzinfo=UTC)
    assert deadline("2026-10-25T07:00", evening) == datetime(2026, 10, 25, 6, 0, tzinfo=UTC)


def test_gpu_hours_are_those_of_the_runs_of_this_start():
    """Not of experiments: one whose second look began last night has cost that night what it cost then."""
    stop = Clocks().conditions(gpu_hours=0.1)
    stop.ran(a_run(344))
    stop.settled(replace(experiment(1), costs={"training": 999.0, "confirm": 999.0}))
    assert stop.reason() == ""
    stop.ran(a_run(0))
    assert "stop.gpu_hours" in stop.reason()


def test_a_plateau_is_a_row_without_a_new_best():
    stop = Clocks().conditions(plateau=3)
    for status in ("discarded", "crashed", "kept", "rejected", "stopped_early"):
        stop.settled(experiment(1, Status(status)))
        assert stop.reason() == ""
    stop.settled(experiment(9))
    assert "3 experiments (stop.plateau)" in stop.reason()


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        ("22:30", "2026-11-24T22:30:00+00:00"),
        ("21:00", "2026-11-25T21:00:00+00:00"),
        ("2026-12-24T07:00", "2026-12-24T07:00:00+00:00"),
        ("2026-11-24T23:00+01:00", "2026-11-24T22:00:00+00:00"),
    ],
)
def test_a_deadline_is_the_next_time_of_day_or_a_date(until, wanted):
    assert deadline(until, NIGHT).isoformat() == wanted


@pytest.mark.parametrize(
    ("until", "words"), [("soon", "'soon'"), ("25:00", "'25:00'"), ("2026-11-24T07:00", "has passed")]
)
def test_a_deadline_that_makes_no_sense_is_refused(until, words):
    with pytest.raises(ValueError, match=words):
        deadline(until, NIGHT)
