"""Prefect's page: right, harmless, and never in the way."""

from __future__ import annotations

import threading
import time
from uuid import UUID

import pytest

from arl_core.records import Experiment
from frozen_env.contract import Status
from tasks import show
from tasks.show import Picture, UiArtifacts, artifact_key, best_markdown, leaderboard


def experiment(index: int, value: float | None = 1.5, **fields: object) -> Experiment:
    return Experiment("c", index, Status.KEPT, metric="val_bpb", value=value, **fields)  # type: ignore[arg-type]


def picture(index: int, *leaders: Experiment, diff: str = "") -> Picture:
    return Picture("c", index, 8, leaders, diff)


def test_an_iteration_waits_for_nothing_and_the_last_state_is_posted() -> None:
    gate, posted = threading.Event(), []

    def slow(one: Picture, _: dict[str, UUID]) -> None:
        gate.wait(10)
        posted.append(one.index)

    artifacts = UiArtifacts(slow)
    began_s = time.monotonic()
    for index in range(100):
        artifacts.show(lambda index=index: picture(index))
    assert time.monotonic() - began_s < 1.0, "a hundred pictures, none of them waited for"
    gate.set()
    artifacts.close()
    assert posted[-1] == 99
    assert len(posted) <= 3, "older states that waited were replaced"


def test_a_server_that_is_away_costs_warnings_and_is_soon_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    tried, done = [], threading.Semaphore(0)

    def away(one: Picture, _: dict[str, UUID]) -> None:
        tried.append(one.index)
        done.release()
        raise OSError("connection refused")

    artifacts = UiArtifacts(away)
    for index in range(show.FAILURES):
        artifacts.show(lambda index=index: picture(index))
        assert done.acquire(timeout=10)
    artifacts.show(lambda: picture(9))
    artifacts.close()
    assert tried == [0, 1, 2]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * show.FAILURES
    assert "left alone for 300 s" in caplog.records[-1].message


def test_a_server_that_is_back_is_shown_the_campaign_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PAUSE_S", 0.0)
    tried, done = [], threading.Semaphore(0)

    def away_for_a_while(one: Picture, known: dict[str, UUID]) -> None:
        tried.append((one.index, dict(known)))
        known["progress"] = UUID(int=one.index)
        done.release()
        if one.index in (1, 2, 3, 4):
            raise OSError("connection refused")

    artifacts = UiArtifacts(away_for_a_while)
    for index in range(6):
        artifacts.show(lambda index=index: picture(index))
        assert done.acquire(timeout=10)
    artifacts.close()
    assert [index for index, _ in tried] == [0, 1, 2, 3, 4, 5]
    assert tried[1][1], "the progress artifact is updated in place"
    assert not tried[5][1], "but made anew after failures"


def test_a_hanging_server_does_not_hold_the_campaign_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "CLOSE_S", 0.2)
    never, begun = threading.Event(), threading.Event()

    def hang(_: Picture, __: dict[str, UUID]) -> None:
        begun.set()
        never.wait(30)

    artifacts = UiArtifacts(hang)
    artifacts.show(lambda: picture(1))
    assert begun.wait(10)
    artifacts.show(lambda: picture(2))
    began_s = time.monotonic()
    artifacts.close()
    assert time.monotonic() - began_s < 5.0
    never.set()


def test_the_leaderboard_says_what_is_confirmed() -> None:
    sure = experiment(3, 1.4, confirmed_value=1.45, confirmations=4, parent_index=0)
    rows = leaderboard([sure, experiment(1)])
    assert [row["experiment"] for row in rows] == [3, 1]
    assert [row["confirmed"] for row in rows] == ["1.4500 ×4", "single run"]


def test_the_best_is_told_by_its_mean_over_fresh_seeds_and_a_single_run_as_one() -> None:
    told = {"confirmation": {"noise_sd": 0.02}}
    sure = experiment(3, 1.4, confirmed_value=1.45, confirmations=4, extra=told)
    assert best_markdown(picture(3, sure)).startswith("## Experiment 3: val_bpb 1.4500 ± 0.0100 ×4\n")
    assert best_markdown(picture(1, experiment(1))).startswith("## Experiment 1: val_bpb 1.5000, one run\n")
    assert best_markdown(picture(1, experiment(1, None))).startswith("## Experiment 1: val_bpb no value\n")


def test_a_candidates_words_are_no_markdown_and_its_diff_stays_in_its_fence() -> None:
    words = "<script>alert(1)</script> ![x](http://evil.example/x.png) [a](javascript:alert(1)) `x`"
    hostile = experiment(1, summary=words)
    text = best_markdown(picture(1, hostile, diff="+```\n+# out\n+<img src=x>\n"))
    head, _, _ = text.partition("````diff")
    assert "<script>" not in head
    assert "![x](" not in head
    assert "[a](" not in head
    assert text.rstrip().endswith("````")
    assert text.count("````") == 2


def test_a_key_is_what_prefect_takes() -> None:
    assert artifact_key("Embedded_2026 x/1") == "embedded-2026-x-1"
    assert artifact_key("…") == "campaign"
