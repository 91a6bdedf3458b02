"""Which campaign a start runs: a new one, the one named, the latest line of research, or the one it began before."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from arl_core.config import StopSettings, load_config
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State
from arl_core.stop_conditions import StopConditions
from flows import research
from flows import start as module
from flows.opening import note_start
from flows.start import plan

LINE = {"continues": True}


@pytest.fixture
def memory_path(tmp_path):
    return tmp_path / "memory.duckdb"


def campaign(
    path, name: str, experiments: int = 1, preset: str = "embedded", start=None, first="kept", **settings
) -> None:
    """Write a campaign with some experiments down, as a run of it would."""
    memory = Memory(path)
    config = load_config(preset, {"memory": str(path), **settings}).to_json()
    memory.create_campaign(Campaign(name, preset, config, "digest", 0, "2026-11-24T00:00:00+00:00", "text"))
    for index in range(experiments):
        status = "discarded" if index else first
        value = None if status == "crashed" else 1.0
        memory.commit_iteration(Experiment(name, index, status, value=value), State({"start": start or {}}))
    memory.close()


def planned(path, iterations=None, resume=None, fresh=False, **settings):
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return plan("embedded", iterations, resume, {"memory": str(path), **dotted}, fresh)


def test_a_start_is_a_new_campaign_where_the_preset_does_not_continue(memory_path):
    campaign(memory_path, "one")
    found = planned(memory_path, 3)
    assert (found.resume, found.last_index(0)) == (None, 3)


def test_the_next_night_goes_on_with_the_last_line_and_counts_anew(memory_path):
    campaign(memory_path, "one", experiments=5, seed=3)
    campaign(memory_path, "other", preset="overnight")
    found = planned(memory_path, 4, **LINE)
    assert found.resume == "one"
    assert found.config.seed == 3, "the campaign's own settings hold"
    assert found.last_index(5) == 8, "four more after experiment 4"


def test_a_line_whose_experiment_0_failed_is_not_gone_on_with(memory_path):
    campaign(memory_path, "good", experiments=3)
    campaign(memory_path, "busy_gpu", experiments=1, first="crashed")
    assert planned(memory_path, 4, **LINE).resume == "good"


def test_resuming_a_line_by_hand_finishes_the_night_that_was_cut_off(memory_path):
    begun = {"flow_run": "", "first": 5, "last": 8}
    campaign(memory_path, "one", experiments=7, start=begun, iterations=4, **LINE)
    found = planned(memory_path, resume="latest")
    assert found.last_index(7) == 8
    assert planned(memory_path, 10, resume="one").last_index(7) == 16, "ten more were asked for"


def test_resuming_a_line_whose_night_was_over_begins_another(memory_path):
    campaign(memory_path, "one", experiments=9, start={"flow_run": "", "first": 5, "last": 8}, iterations=4, **LINE)
    assert planned(memory_path, resume="latest").last_index(9) == 12


def test_a_line_that_an_older_version_began_is_resumed_to_the_end_of_its_night(memory_path):
    campaign(memory_path, "one", experiments=7, start={"flow_run": "", "first": 5}, iterations=4, **LINE)
    assert planned(memory_path, resume="one").last_index(7) == 8


def test_fresh_starts_anew(memory_path):
    campaign(memory_path, "one", experiments=5)
    found = planned(memory_path, 4, fresh=True, **LINE)
    assert (found.resume, found.last_index(0)) == (None, 4)


def test_the_first_night_has_nothing_to_go_on_with(memory_path):
    found = planned(memory_path, 4, **LINE)
    assert (found.resume, found.last_index(0)) == (None, 4)


def test_a_schedule_may_repeat_what_the_campaign_has_but_not_change_it(memory_path):
    campaign(memory_path, "one", **{"environment.budget_s": 7.0})
    assert planned(memory_path, environment__budget_s=7.0, **LINE).resume == "one"
    with pytest.raises(ConfigError, match=r"environment.budget_s cannot change.*7.0"):
        planned(memory_path, environment__budget_s=8.0, **LINE)


def test_a_short_name_is_the_setting_itself(memory_path):
    assert planned(memory_path, problem="examples/digits").config.environment.problem == "examples/digits"
    campaign(memory_path, "one", **{"environment.sandbox": "on"})
    with pytest.raises(ConfigError, match=r"environment.sandbox cannot change"):
        planned(memory_path, resume="one", sandbox="off")


def test_on_a_cpu_the_number_of_candidates_side_by_side_is_for_the_campaigns_whole_life(memory_path):
    campaign(memory_path, "one", parallel=2)
    assert planned(memory_path, resume="one", parallel=2).config.parallel == 2
    with pytest.raises(ConfigError, match=r"parallel cannot change .* \(it has 2\)"):
        planned(memory_path, resume="one", parallel=1)
    campaign(memory_path, "gpus", **{"environment.device": "cuda"})
    assert planned(memory_path, resume="gpus", parallel=8).config.parallel == 8


def test_a_resumed_campaign_counts_from_its_beginning(memory_path):
    campaign(memory_path, "one", experiments=5, iterations=9)
    assert planned(memory_path, resume="one").last_index(5) == 9
    assert planned(memory_path, 20, resume="latest").last_index(5) == 20


def test_limits_are_those_of_tonight(memory_path):
    campaign(memory_path, "one", **{"stop.hours": 1.0})
    assert planned(memory_path, stop__plateau=5, **LINE).config.stop.plateau == 5
    assert planned(memory_path, **LINE).config.stop.hours is None


def test_resume_and_fresh_exclude_each_other(memory_path):
    campaign(memory_path, "one")
    with pytest.raises(ConfigError, match="exclude each other"):
        planned(memory_path, resume="one", fresh=True)


def test_a_retried_flow_run_goes_on_with_what_it_began(memory_path, monkeypatch):
    campaign(memory_path, "mine", experiments=6, start={"flow_run": "f1", "first": 4})
    campaign(memory_path, "newer", experiments=2, start={"flow_run": "f2", "first": 0})
    monkeypatch.setattr(module, "flow_run_id", lambda: "f1")
    found = planned(memory_path, 4, **LINE)
    assert found.resume == "mine"
    assert found.last_index(6) == 7, "to the end that it had: four from experiment 4 on"


def test_a_retried_flow_run_has_the_limits_of_its_own_night_and_not_of_the_first(memory_path, monkeypatch):
    start = {"flow_run": "f1", "first": 4, "last": 7}
    campaign(memory_path, "mine", experiments=6, start=start, iterations=2, **{"stop.hours": 1.0})
    monkeypatch.setattr(module, "flow_run_id", lambda: "f1")
    found = planned(memory_path, 4, **LINE)
    assert found.last_index(6) == 7
    assert found.config.stop.hours is None


def test_a_retried_flow_run_keeps_the_deadline_of_its_own_night(memory_path, monkeypatch):
    monkeypatch.setattr(module, "flow_run_id", lambda: "f1")
    later = (datetime.now().astimezone() + timedelta(hours=1)).isoformat()
    start = {"flow_run": "f1", "first": 4, "last": 7, "until": later}
    campaign(memory_path, "mine", experiments=6, start=start)
    an_hour_ago = f"{datetime.now().astimezone() - timedelta(hours=1):%H:%M}"  # which alone would be tomorrow's
    assert planned(memory_path, stop__until=an_hour_ago, **LINE).config.stop.until == later
    campaign(memory_path, "over", experiments=6, start=start | {"until": "2026-11-24T07:00:00+00:00"})
    with pytest.raises(ConfigError, match=r"stop.until has passed: '2026-11-24T07:00"):
        planned(memory_path, stop__until=an_hour_ago, **LINE)


def test_a_flow_run_that_died_before_its_first_commit_is_retried_as_itself(memory_path, monkeypatch):
    campaign(memory_path, "mine", experiments=0)
    memory = Memory(memory_path)
    note_start(memory, "mine", {"flow_run": "f1", "first": 0})
    memory.close()
    campaign(memory_path, "newer", experiments=2, start={"flow_run": "f2", "first": 0})
    monkeypatch.setattr(module, "flow_run_id", lambda: "f1")
    assert planned(memory_path, 4).resume == "mine"


def test_noting_a_start_keeps_what_the_campaign_resumes_from(memory_path):
    campaign(memory_path, "one", experiments=0)
    memory = Memory(memory_path)
    memory.commit_iteration(Experiment("one", 0, "kept", value=1.0), State({"policy_step": 3}, b"rollouts"))
    note_start(memory, "one", {"flow_run": "f9", "first": 1})
    assert memory.state("one") == State({"policy_step": 3, "start": {"flow_run": "f9", "first": 1}}, b"rollouts", 0)
    memory.close()


def test_candidates_side_by_side_share_the_cores(memory_path, monkeypatch):
    monkeypatch.setattr(module, "os", SimpleNamespace(cpu_count=lambda: 8))
    assert planned(memory_path, parallel=8).config.environment.threads == 1
    assert planned(memory_path, parallel=4).config.environment.threads == 2
    assert planned(memory_path, parallel=8, environment__threads=2).config.environment.threads == 2
    assert planned(memory_path, parallel=8, nodes__deployment="experiment/node").config.environment.threads == 2


def test_a_deadline_that_has_passed_is_one_clear_error(memory_path):
    with pytest.raises(ConfigError, match="has passed: '2020-01-01T00:00'"):
        planned(memory_path, stop__until="2020-01-01T00:00")


def test_a_resumed_campaign_shows_where_it_stands_and_with_nothing_left_says_so() -> None:
    told: list[str] = []
    shown: list[object] = []
    past = [Experiment("c", index, "kept") for index in range(13)]
    memory = SimpleNamespace(
        experiment=lambda _campaign, index: past[index],
        experiments=lambda _campaign, whole: past,
        incumbent=lambda _campaign: past[-1],
        next_index=lambda _campaign: 13,
    )
    session = SimpleNamespace(
        memory=memory,
        campaign=SimpleNamespace(id="c"),
        display=SimpleNamespace(say=told.append, resumed=lambda *said: shown.append(said)),
        slots=SimpleNamespace(count=1),
        indices=lambda: iter([]),
        landed={},
        last_index=10,
    )
    research.run(session, StopConditions(StopSettings()))  # type: ignore[arg-type]
    assert shown == [(past, past[-1])]
    (line,) = told
    assert line.endswith("counts from the campaign's beginning, and 12 are there; --iterations 20 goes on")
