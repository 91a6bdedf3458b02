"""Runs that take their campaign down: known from their files after a kill, run alone, and not begun a third time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import slots as module
from flows.slots import LocalSlots, Order
from flows.under_way import KEPT, UnderWay
from frozen_env.contract import Ending, HostError, RunResult
from tests.flows.made_up_slots import opened, order, wait_until

pytestmark = pytest.mark.usefixtures("made_up_hosts")


class Killed(BaseException):
    """Stands for SIGKILL of the campaign: nothing is tidied."""


def dying(*_: object) -> RunResult:
    raise Killed


def campaign_of(folder: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., RunResult]) -> LocalSlots:
    monkeypatch.setattr(module, "train", train)
    slots = opened(1, device="cpu")
    slots.under_way = UnderWay(folder)
    return slots


def killed_under(folder: Path, what: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign that dies while `what` runs: its file stays, as nothing after a SIGKILL would remove it."""
    slots = campaign_of(folder, monkeypatch, dying)
    with monkeypatch.context() as dead:
        dead.setattr(UnderWay, "end", lambda *_: None)
        with pytest.raises(Killed):
            slots.run(what, print)


def test_a_run_under_which_the_campaign_died_twice_is_not_begun_a_third_time(monkeypatch, tmp_path):
    for _ in range(2):
        killed_under(tmp_path / "under_way", order("takes the machine down"), monkeypatch)
    slots = campaign_of(tmp_path / "under_way", monkeypatch, lambda *_: pytest.fail("it began again"))
    result = slots.run(order("takes the machine down"), print)
    assert result.ending is Ending.CRASHED
    assert result.reason == "the campaign died 2 times while it ran; it is not begun again"


def test_a_run_that_was_cut_off_once_runs_to_its_end_and_its_past_is_forgotten(monkeypatch, tmp_path):
    killed_under(tmp_path / "under_way", order("fine"), monkeypatch)
    slots = campaign_of(tmp_path / "under_way", monkeypatch, lambda *_: RunResult(Ending.FINISHED))
    assert slots.run(order("fine"), print).ending is Ending.FINISHED
    assert list((tmp_path / "under_way").iterdir()) == []


def test_another_seed_of_a_program_is_another_run(monkeypatch, tmp_path):
    for _ in range(2):
        killed_under(tmp_path / "under_way", order("x"), monkeypatch)
    slots = campaign_of(tmp_path / "under_way", monkeypatch, lambda *_: RunResult(Ending.FINISHED))
    assert slots.run(Order(1, "x", 1, Path("unused"), "none", {}), print).ending is Ending.FINISHED


def test_a_program_that_has_shown_itself_sound_is_never_refused(monkeypatch, tmp_path):
    """The untouched target, and an incumbent that runs again beside whoever took the machine down."""
    sound = Order(0, "x", 0, Path("unused"), "none", {}, blamed=False)
    for _ in range(3):
        killed_under(tmp_path / "under_way", sound, monkeypatch)
    slots = campaign_of(tmp_path / "under_way", monkeypatch, lambda *_: RunResult(Ending.FINISHED))
    assert slots.run(sound, print).ending is Ending.FINISHED


def test_the_same_program_twice_side_by_side_is_two_runs(tmp_path):
    """As `policy.proposer = none` proposes it."""
    under_way = UnderWay(tmp_path)
    for index in (1, 2, 3):
        under_way.begin(order("same", index))
    assert len(list(tmp_path.iterdir())) == 3
    under_way.end(order("same", 2))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_with_a_past_runs_alone_so_that_what_dies_then_is_its_doing(monkeypatch, tmp_path):
    killed_under(tmp_path / "under_way", order("suspect", 1), monkeypatch)
    started = list[str]()
    may_end, suspect_may_end = threading.Event(), threading.Event()

    def train(_host, source, *_):
        started.append(source)
        assert (suspect_may_end if source == "suspect" else may_end).wait(30)
        return RunResult(Ending.FINISHED)

    monkeypatch.setattr(module, "train", train)
    slots = opened(3, device="cpu")
    slots.under_way = UnderWay(tmp_path / "under_way")
    flights = [slots.submit(order(f"x = {index}", index), print) for index in (2, 3)]
    wait_until(lambda: len(started) == 2)
    flights.append(slots.submit(order("suspect", 1), print))
    wait_until(lambda: slots.under_way._suspects == 1)
    flights += [slots.submit(order(f"x = {index}", index), print) for index in (4, 5, 6)]
    assert len(started) == 2, "it waits for those that ran before it"
    may_end.set()
    wait_until(lambda: "suspect" in started and len(slots.under_way._turn._waiters) == 2)
    assert started[2:] == ["suspect"], "those behind it wait, and nobody runs beside it"
    suspect_may_end.set()
    assert [flight.result(30).ending for flight in flights] == [Ending.FINISHED] * 6
    slots.close()


def test_a_tidy_interruption_is_no_death_and_a_host_that_keeps_dying_is_one(monkeypatch, tmp_path):
    def interrupted(*_: object) -> RunResult:
        raise KeyboardInterrupt

    def gone(*_: object) -> RunResult:
        raise HostError("the host process ended")

    slots = campaign_of(tmp_path / "under_way", monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        slots.run(order(), print)
    assert list((tmp_path / "under_way").iterdir()) == []
    slots = campaign_of(tmp_path / "under_way", monkeypatch, gone)
    with pytest.raises(HostError):
        slots.run(order(), print)
    assert len(list((tmp_path / "under_way").iterdir())) == 1


def test_files_of_runs_that_nobody_asks_for_again_do_not_pile_up(tmp_path):
    under_way = UnderWay(tmp_path)
    for index in range(KEPT + 6):
        under_way.begin(order(f"x = {index}"))
    UnderWay(tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT
