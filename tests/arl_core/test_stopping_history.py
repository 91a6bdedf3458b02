"""What a verdict knows is the same whether curves are remembered or read anew, and only new ones are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arl_core.config import load_config
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State
from arl_core.stopping import StoppingHistory, audit_fields, is_audited
from frozen_env.contract import Report, Status, Verdict


def campaign(name: str = "c") -> Campaign:
    return Campaign(name, "embedded", {}, "e1", 0, "2026-11-24T00:00:00+00:00", "text")


def run(index: int, name: str = "c", status: Status = Status.DISCARDED, **fields: Any) -> Experiment:
    curve = tuple(Report(k, k / 10, k / 10, 4.0 - index / 10 - k / 10, 1e-3) for k in range(1, 11))
    known = {"value": 2.0 - index / 10, "reports": curve, "environment_digest": "e1", "source": "x"}
    return Experiment(name, index, status, **(known | fields))


class CountingMemory(Memory):
    """Counts the curves that are read."""

    curves_read = 0

    def completed_runs(self, *arguments: Any, curves: bool = True, **named: Any) -> list[Experiment]:
        found = super().completed_runs(*arguments, curves=curves, **named)
        self.curves_read += len(found) if curves else 0
        return found


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[CountingMemory]:
    one = CountingMemory(tmp_path / "memory.duckdb")
    one.create_campaign(campaign("earlier"))
    one.commit_iteration(run(0, "earlier", Status.KEPT), State())
    one.create_campaign(campaign())
    yield one
    one.close()


@pytest.mark.parametrize("earlier_count", [True, False])
def test_remembered_and_read_anew_are_the_same(memory: CountingMemory, earlier_count: bool) -> None:
    config = load_config("embedded", {"stopping.history": earlier_count})
    history = StoppingHistory(memory, campaign(), config)
    for index in (0, 3, 1, 2):  # side by side they are committed out of order
        memory.commit_iteration(run(index, status=Status.DISCARDED if index else Status.KEPT), State())
        anew = StoppingHistory(memory, campaign(), config).snapshot(9)
        assert history.snapshot(9) == anew
    finals = sorted(one["final"] for one in anew["completed"])
    assert finals == [1.7, 1.8, 1.9, 2.0] + ([2.0] if earlier_count else [])
    memory.commit_iteration(run(4, status=Status.CRASHED, value=None), State())
    assert history.snapshot(9) == anew, "a run without a value calibrates nothing"


def test_a_campaign_that_goes_on_after_another_finds_all_of_its_own_runs(memory: CountingMemory) -> None:
    for index in range(6):
        memory.commit_iteration(run(index), State())
    memory.create_campaign(campaign("later"))
    for index in range(6):
        memory.commit_iteration(run(index, "later"), State())
    config = load_config("embedded", {"stopping.history": True})
    found = StoppingHistory(memory, campaign(), config).snapshot(9)["completed"]
    assert [(one["group"], one["own"]) for one in found][:6] == [("c", True)] * 6
    few = [one.campaign_id for one in memory.completed_runs("e1", 8, own="c")]
    assert few == ["later"] * 2 + ["c"] * 6


def test_only_the_curves_that_are_new_are_read(memory: CountingMemory) -> None:
    history = StoppingHistory(memory, campaign(), load_config("embedded", {"stopping.history": True}))
    for index in range(10):
        memory.commit_iteration(run(index), State())
        history.snapshot(9)
    assert memory.curves_read == 11
    history.snapshot(9)
    assert memory.curves_read == 11


def test_earlier_campaigns_on_another_device_are_left_out(memory: CountingMemory) -> None:
    for name, device in (("slow", "slow GPU"), ("fast", "fast GPU")):
        memory.create_campaign(campaign(name))
        for index in range(2):
            memory.commit_iteration(run(index, name, extra={"performance": {"device": device}}), State())
    memory.commit_iteration(run(0, extra={"performance": {"device": "fast GPU"}}), State())
    found = StoppingHistory(memory, campaign(), load_config("embedded")).snapshot(9)["completed"]
    assert [one["group"] for one in found] == ["c", "earlier", "fast", "fast"], "`earlier` has not told where it ran"


def test_what_a_run_stands_for_is_read_from_its_own_record_whatever_the_settings_are_now(
    memory: CountingMemory,
) -> None:
    cautious, judged = Verdict(False, "", "ours", 0.5), Verdict(False, "", "ours", 0.5, forecast=1.5, p_improve=0.5)
    audited = Verdict(False, "", "audit", 0.5, forecast=1.9, p_improve=0.01)
    told: list[tuple[Verdict, dict[str, Any]]] = [
        (cautious, {"audit": {"drawn": False, "share": 0.2}}),  # one of the first few
        (judged, {"audit": {"drawn": False, "share": 0.2}}),  # a survivor
        (judged, {"audit": {"drawn": True, "share": 0.2}}),  # drawn, and would have lived anyway
        (audited, {"audit": {"drawn": True, "share": 0.2}}),
        (judged, {}),  # a survivor of a version that knew no audit
    ]
    for index, (verdict, extra) in enumerate(told):
        memory.commit_iteration(run(index, verdicts=(verdict,), extra=extra), State())
    config = load_config("embedded", {"stopping.audit_share": 0.5, "stopping.history": False})
    found = StoppingHistory(memory, campaign(), config).snapshot(9)["completed"]
    assert [one.get("sampled", True) for one in found] == [True, False, True, True, False]
    assert [one.get("stands_for", 1.0) for one in found] == [1.0, 1.0, 1.0, 5.0, 1.0]


def test_the_audit_draws_its_share_by_seed_and_index_alone() -> None:
    config = load_config("embedded", {"stopping.audit_share": 0.2})
    drawn = [is_audited(config, index) for index in range(2000)]
    assert drawn == [is_audited(config, index) for index in range(2000)]
    assert drawn != [is_audited(load_config("embedded", {"seed": 1}), index) for index in range(2000)]
    assert not any(is_audited(load_config("embedded", {"stopping.audit_share": 0.0}), index) for index in range(100))
    assert all(is_audited(load_config("embedded", {"stopping.audit_share": 1.0}), index) for index in range(100))
    assert audit_fields(config, 3) == {"audit": {"drawn": drawn[3], "share": 0.2}}
    assert audit_fields(load_config("embedded", {"stopping.rule": "naive"}), 3) == {}, "only our own rule is audited"


@pytest.mark.parametrize(("share", "block"), [(0.05, 20), (0.1, 10), (0.2, 5), (0.5, 2)])
def test_every_short_campaign_has_its_audited_runs_whatever_its_seed(share: float, block: int) -> None:
    for seed in range(20):
        config = load_config("embedded", {"stopping.audit_share": share, "seed": seed})
        drawn = [is_audited(config, index) for index in range(1, 20 * block + 1)]
        assert {sum(drawn[start : start + block]) for start in range(0, len(drawn), block)} == {1}


def test_the_snapshot_says_whether_its_run_is_audited(memory: CountingMemory) -> None:
    config = load_config("embedded", {"stopping.audit_share": 0.5})
    history = StoppingHistory(memory, campaign(), config)
    assert [history.snapshot(index)["audited"] for index in range(20)] == [is_audited(config, i) for i in range(20)]
