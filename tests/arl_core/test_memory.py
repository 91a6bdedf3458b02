"""The memory keeps what it was given, whole and once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arl_core import memory_rows
from arl_core.errors import ConfigError
from arl_core.memory import REASON_CHARS, STATES_KEPT, Memory
from arl_core.records import Campaign, Experiment, State, source_hash
from frozen_env.contract import Cause, Report, Status, Verdict
from tests.arl_core.memories import SEED, campaign, experiment


def test_an_experiment_comes_back_whole(memory: Memory) -> None:
    full = Experiment(
        "c",
        3,
        Status.STOPPED_EARLY,
        parent_index=0,
        cause=Cause.VERDICT,
        reason="hopeless",
        summary="MUON_LR: 2e-3 → 2.8e-3",
        diff="--- a\n+++ b\n",
        source_hash=source_hash(SEED),
        source=SEED + "\nLR = 3\n",
        metric="val_bpb",
        estimate=1.25,
        incumbent_value=1.2,
        reward=-0.2,
        reward_terms={"gain": -0.2},
        reports=(Report(1, 0.5, 0.1, 4.0), Report(2, 1.0, 0.2, float("inf"), 1e-3)),
        verdicts=(Verdict(True, "worse", "ours", 0.5, 1.25, 1.2, 1.3, 0.01, 1.2),),
        prompt="the prompt\0 with a NUL",
        completion="<<<<<<< SEARCH",
        log="\x1b[31mé",
        repairs=("counts",),
        costs={"training": 2.0},
        peak_memory_mb=12.5,
        tokens=2**40,
        seed=2**63,
        environment_digest="digest",
        sandbox="sandlock",
        created_at="2026-11-23T00:00:00+00:00",
        policy_step=7,
        confirmed_value=1.21,
        confirmations=3,
        extra={"update": {"approx_kl": 0.01}},
    )
    memory.commit_iteration(experiment(0, 1.0, source=SEED), State())
    memory.commit_iteration(full, State())
    assert memory.experiment("c", 3) == full
    assert Memory(memory.path).experiment("c", 3) == full
    assert memory.experiment("c", 4) is None


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), min_size=4, max_size=4))
def test_any_text_is_kept_except_lone_surrogates(memory: Memory, texts: list[str]) -> None:
    reason, completion, source, prompt = texts
    index = memory.next_index("c")
    given = experiment(index, reason=reason, completion=completion, source=source, prompt=prompt, log=prompt)
    memory.commit_iteration(given, State())
    kept = memory.experiment("c", index)
    assert kept is not None
    assert (kept.source, kept.prompt, kept.log) == (source, prompt, prompt)
    assert kept.completion == completion.encode("utf-8", "replace").decode()


def test_an_edited_source_takes_a_few_hundred_bytes() -> None:
    base = SEED.encode()
    packed = memory_rows._pack(SEED.replace("hopeless", "doomed"), base)
    assert len(packed) < len(SEED) / 30
    assert memory_rows._unpack(packed, base) == SEED.replace("hopeless", "doomed")


def test_campaigns_share_a_file_and_do_not_mix(memory: Memory) -> None:
    memory.create_campaign(campaign("d", metric="accuracy", direction="higher"))
    for index, value in enumerate([1.5, 1.2, None, 1.4]):
        memory.commit_iteration(experiment(index, value), State())
        memory.commit_iteration(experiment(index, value and value + 10, "d", direction="higher"), State())
    assert [one.id for one in memory.campaigns()] == ["c", "d"]
    assert memory.get_campaign().id == "d"
    assert [one.value for one in memory.top("c")] == [1.2, 1.4, 1.5]
    assert [one.value for one in memory.top("d", 2)] == [11.5, 11.4]
    assert [one.index for one in memory.recent("c", 3)] == [3, 2, 1]
    assert [one.index for one in memory.experiments("latest", since=2)] == [2, 3]
    assert memory.for_prompt("c", 1, 1)[0] == memory.recent("c", 1)


def test_forecasts_and_nan_are_no_measurements(memory: Memory) -> None:
    memory.commit_iteration(experiment(0, 1.5, status=Status.KEPT), State())
    memory.commit_iteration(experiment(1, float("nan"), status=Status.KEPT), State())
    memory.commit_iteration(experiment(2, None, estimate=0.1, status=Status.STOPPED_EARLY), State())
    assert [one.index for one in memory.top("c")] == [0]
    incumbent = memory.incumbent("c")
    assert incumbent is not None
    assert incumbent.index == 0


def test_the_incumbent_is_the_best_that_was_kept_in_whatever_order_they_came(memory: Memory) -> None:
    assert memory.incumbent("c") is None
    for index, value, status in [(0, 1.5, "kept"), (9, 1.1, "kept"), (7, 1.0, "kept"), (8, 0.9, "discarded")]:
        memory.commit_iteration(experiment(index, value, status=status, source=f"x = {index}"), State())
    incumbent = memory.incumbent("c")
    assert incumbent is not None
    assert (incumbent.index, incumbent.source) == (7, "x = 7")
    assert memory.next_index("c") == 10


def test_what_a_prompt_does_not_show_is_only_there_when_asked_for(memory: Memory) -> None:
    given = experiment(0, 1.0, source=SEED, prompt="p", reports=(Report(1, 0.1, 0.1, 4.0),))
    memory.commit_iteration(given, State())
    assert memory.recent("c", whole=True) == memory.top("c", whole=True) == [given]
    assert memory.recent("c") == memory.top("c") == [dataclasses.replace(given, source="", prompt="", reports=())]


def test_a_source_tried_before_is_found_whatever_its_spelling(memory: Memory) -> None:
    memory.commit_iteration(experiment(0, 1.0, source="x = 1", source_hash=source_hash("x = 1")), State())
    memory.commit_iteration(experiment(1, source_hash=""), State())
    memory.create_campaign(campaign("d"))
    assert memory.seen(source_hash("x  =  1  # one")) == ("c", 0)
    assert memory.seen(source_hash("x = 1"), "d") is None
    assert memory.seen(source_hash("x = 2")) is None
    assert memory.seen("") is None
    assert memory.seen("no digest at all") is None


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_a_critic_sees_the_first_program_the_latest_and_the_best_measured(tmp_path: Path, direction: str) -> None:
    sign = 1 if direction == "lower" else -1
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(campaign(direction=direction))
    for index in range(12):
        hashed = {"source": f"A = {index}", "source_hash": source_hash(f"A = {index}"), "direction": direction}
        told: dict[int, dict[str, object]] = {
            2: {"value": sign * 0.1},
            3: {"value": float("nan")},
            4: {"value": sign * 0.3, "confirmed_value": sign * 0.05},
            5: {"estimate": sign * 0.01, "status": Status.STOPPED_EARLY},
            6: {"value": sign * 0.2},
            7: {"value": sign * 0.01, "status": Status.DUPLICATE},
        }
        known = told.get(index, {"value": sign * (1.0 + index)})
        memory.commit_iteration(experiment(index, **(hashed | known)), State())  # type: ignore[arg-type]
    memory.commit_iteration(experiment(12, status=Status.REJECTED), State())  # an edit that made no program
    found = memory.programs("c", 3, best=2)
    assert [one.index for one in found] == [0, 2, 4, 9, 10, 11]
    assert [one.source for one in found] == [f"A = {one.index}" for one in found]
    assert [one.index for one in memory.programs("c", 100)] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_curves_and_completed_runs_of_one_environment(memory: Memory) -> None:
    curve = (Report(1, 0.1, 0.1, 4.0, 1e-3), Report(2, 0.2, 1.0, 3.0, 0.0))
    memory.create_campaign(campaign("d"))
    run = {"reports": curve, "environment_digest": "e1"}
    memory.commit_iteration(experiment(0, 1.5, "c", **run), State())
    memory.commit_iteration(experiment(1, 1.5, "c", reports=curve, environment_digest="e2"), State())
    memory.commit_iteration(experiment(2, None, "c", **run, status=Status.STOPPED_EARLY), State())
    memory.commit_iteration(experiment(0, 1.4, "d", **run), State())
    assert memory.curves("c") == {0: curve, 1: curve, 2: curve}
    assert [(one.campaign_id, one.reports) for one in memory.completed_runs("e1")] == [("c", curve), ("d", curve)]
    assert [one.campaign_id for one in memory.completed_runs("e1", limit=1)] == ["d"]


def test_an_export_is_json_lines_of_everything(memory: Memory, tmp_path: Path) -> None:
    given = [experiment(0, 1.0, source=SEED), experiment(1, reports=(Report(1, 0.1, 0.1, float("inf")),))]
    for one in given:
        memory.commit_iteration(one, State())
    assert memory.export(tmp_path / "out.jsonl") == 2
    first, *rest = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert Campaign.from_json(first) == campaign()
    assert [Experiment.from_json(each) for each in rest] == given


# --- the commit -------------------------------------------------------------------------------------------------------


def test_the_state_is_committed_with_its_experiment(memory: Memory) -> None:
    assert memory.state("c") is None
    memory.commit_iteration(experiment(0, 1.0), State({"random": [1, 2]}, b"\0rollouts"))
    assert memory.state("c") == State({"random": [1, 2]}, b"\0rollouts", 0)
    memory.commit_state("c", State({"noise": 0.01}, index=0))
    assert memory.state("c") == State({"noise": 0.01}, b"", 0)


def test_the_states_before_are_kept_for_a_torn_checkpoint(memory: Memory) -> None:
    for index in range(6):
        memory.commit_iteration(experiment(index, 1.0), State({"at": index}))
    states = [memory.state("c", back=back) for back in range(STATES_KEPT + 1)]
    assert [state and state.index for state in states] == [5, 4, 3, None]


def test_no_experiment_is_committed_twice(memory: Memory) -> None:
    memory.commit_iteration(experiment(0, 1.0), State({"first": True}))
    with pytest.raises(ValueError, match="committed already"):
        memory.commit_iteration(experiment(0, 2.0), State({"first": False}))
    assert memory.state("c") == State({"first": True}, b"", 0)
    assert [one.value for one in memory.experiments("c")] == [1.0]


def test_a_commit_that_fails_halfway_leaves_nothing(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(Memory, "_write_state", fail)
        with pytest.raises(RuntimeError):
            memory.commit_iteration(experiment(0, 1.0, source=SEED), State())
    assert memory.experiments("c") == []
    memory.commit_iteration(experiment(0, 1.0, source=SEED), State())
    assert memory.experiments("c")[0].source == SEED


def test_an_unknown_campaign_is_named_with_those_there_are(memory: Memory) -> None:
    with pytest.raises(ConfigError, match=r"no campaign 'x'.*c"):
        memory.get_campaign("x")
    with pytest.raises(ConfigError, match="no campaign"):
        memory.commit_iteration(experiment(0, 1.0, "x"), State())
    with pytest.raises(ValueError, match="already"):
        memory.create_campaign(campaign())


def test_campaign_status_is_noted(memory: Memory) -> None:
    memory.set_status("c", "finished")
    assert memory.get_campaign("c").status == "finished"


def test_why_a_campaign_failed_is_kept_until_it_runs_again(memory: Memory) -> None:
    memory.create_campaign(campaign("d"))
    memory.commit_iteration(experiment(0, 1.0), State())
    assert memory.status_reason("c") == ""
    memory.set_status("c", "failed", reason="GPU 0 has vanished")
    memory.commit_iteration(experiment(0, 1.0, "d"), State())
    read = Memory(memory.path, read_only=True)
    assert (read.get_campaign("c").status, read.status_reason("c")) == ("failed", "GPU 0 has vanished")
    assert read.status_reason("d") == ""
    memory.set_status("c", "running")
    assert memory.status_reason("c") == ""
    memory.set_status("c", "failed", reason="again")
    memory.set_status("c", "finished")
    assert memory.status_reason("c") == ""


def test_a_reason_leaves_the_states_as_they_are(memory: Memory) -> None:
    for index in range(STATES_KEPT):
        memory.commit_iteration(experiment(index, 1.0), State({"at": index}, b"rollouts"))
    before = [memory.state("c", back=back) for back in range(STATES_KEPT)]
    for reason in ("one", "another", ""):
        memory.set_status("c", "failed", reason=reason)
        assert memory.status_reason("c") == reason
        assert [memory.state("c", back=back) for back in range(STATES_KEPT)] == before


def test_a_campaign_that_fails_before_its_first_state_says_why_too(memory: Memory) -> None:
    memory.set_status("c", "interrupted")
    assert memory.state("c") is None
    memory.set_status("c", "failed", reason="no such deployment")
    assert memory.status_reason("c") == "no such deployment"
    assert memory.state("c") == State()


def test_a_reason_is_one_printable_line_of_sane_length(memory: Memory) -> None:
    memory.set_status("c", "failed", reason="GPU\n\x1b[2J \u202e \ud800 " + "x" * 10_000)
    reason = memory.status_reason("c")
    assert reason.isprintable()
    assert reason.startswith("GPU \\x1b[2J")
    assert len(reason) == REASON_CHARS


def test_the_campaign_that_wrote_last_is_known(memory: Memory) -> None:
    assert memory.written_last() == "c", "it has been created"
    memory.commit_iteration(experiment(0, 1.0), State())
    memory.create_campaign(campaign("d"))
    assert memory.written_last() == "d"
    memory.commit_iteration(experiment(0, 1.0, "d"), State())
    assert memory.written_last() == "d"
    memory.commit_state("c", State())
    assert memory.written_last() == "c", "an earlier one has been resumed"
    memory.set_status("d", "failed", reason="found dead")
    assert memory.written_last() == "c"


def test_an_empty_memory_was_written_by_no_campaign(tmp_path: Path) -> None:
    assert Memory(tmp_path / "empty.duckdb").written_last() is None
