"""A second look inside a campaign: what is run, what is believed, what a kill costs. The runs are made up, the memory is real."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import flows.confirm as module
from arl_core.config import load_config
from arl_core.errors import ConfigError
from arl_core.outcome import settle
from arl_core.patch import Patch
from arl_core.records import Experiment, State
from arl_core.repeats import Repeats, Role
from arl_core.second_look import reference
from flows import blame, iteration
from flows.costs import Costs
from flows.slots import Order
from frozen_env.contract import Cause, Ending, ResearchError, RunResult, Score, Status
from tasks.reward import make_reward
from tests.flows.second_looks import Killed, MadeUpHost, look, seed_experiment

pytestmark = pytest.mark.usefixtures("without_prefect")


def test_the_noise_floor_is_measured_on_fresh_seeds_before_anything_is_believed(open_session):
    session, host, said = open_session({"base": 2.0})
    seed = seed_experiment(session)
    assert host.runs == [("base", 0), ("base", 1), ("base", 2), ("base", 3)]
    assert seed.confirmations == 3
    assert seed.confirmed_value == pytest.approx(2.0 + (0.01 - 0.01 + 0.004) / 3)
    assert seed.extra["confirmation"]["noise_df"] == 3
    assert seed.promotion == 1
    assert any("noise floor: one run has sd" in line for line in said)


def test_a_noise_floor_that_failed_as_a_whole_is_tried_again_on_other_seeds(open_session):
    session, host, _ = open_session({"base": 2.0})
    host.fails |= {("base", seed) for seed in (1, 2, 3)}  # a busy GPU, say
    with pytest.raises(ResearchError, match=r"no score on any of 3 fresh seeds.*start anew \(--fresh\)"):
        seed_experiment(session)
    host.runs.clear()
    found = seed_experiment(session)
    assert host.runs == [("base", seed) for seed in (4, 5, 6)], "the first run is paid for"
    assert found.confirmations == 3


def test_a_large_improvement_is_kept_after_a_few_pairs_with_the_incumbents_runs_reused(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.5})
    seed_experiment(session)
    host.runs.clear()
    found = look(session, "good")
    assert found.outcome.status is Status.KEPT
    assert host.runs == [("good", 0), ("good", 1), ("good", 2), ("good", 3)], "the incumbent ran there already"
    assert found.fields["confirmations"] == 3
    assert found.fields["extra"]["confirmation"]["promotion"] == 2
    assert "confirmed in 3 paired re-runs" in found.outcome.reason
    assert found.gain == pytest.approx(0.5, abs=0.02)


class SideBySide(MadeUpHost):
    """Answers runs in threads, three at a time."""

    count = 3

    def __init__(self, values: dict[str, float | None], die_at: int | None = None) -> None:
        super().__init__(values, die_at)
        self.threads = ThreadPoolExecutor(self.count)
        self.batches = list[int]()

    def submit(self, order: Order, on_event: Any) -> Future[RunResult]:
        self.batches[-1] += 1
        return self.threads.submit(self.run, order, on_event)


def test_with_slots_side_by_side_the_noise_floor_is_measured_side_by_side(open_session):
    session, _, _ = open_session({"base": 2.0})
    session.slots = host = SideBySide({"base": 2.0})
    host.batches.append(0)
    found = seed_experiment(session)
    assert host.batches == [3], "all but the first run, which says whether the target runs at all"
    assert found.confirmations == 3
    assert sorted(seed for _, seed in host.runs) == [0, 1, 2, 3]
    assert found.confirmed_value == pytest.approx(2.0 + (0.01 - 0.01 + 0.004) / 3)


@pytest.mark.parametrize(("good", "kept"), [(1.9, Status.KEPT), (1.97, Status.KEPT), (1.986, Status.DISCARDED)])
def test_where_others_wait_the_runs_before_the_first_decision_are_done_at_once(open_session, tmp_path, good, kept):
    session, host, _ = open_session({"base": 2.0, "good": good})
    seed_experiment(session)
    one_by_one = look(session, "good")
    (tmp_path / "memory.duckdb").rename(tmp_path / "other.duckdb")
    session, _, _ = open_session({"base": 2.0, "good": good})
    seed_experiment(session)
    session.slots = host = SideBySide({"base": 2.0, "good": good})
    session.at_once = lambda: host.batches.append(0) or 3
    at_once = look(session, "good")
    assert at_once.outcome.status is one_by_one.outcome.status is kept
    if kept is Status.KEPT:  # dropped it would have been after fewer pairs
        assert (at_once.outcome, at_once.gain) == (one_by_one.outcome, one_by_one.gain)
    assert host.batches[0] == 3, "the incumbent has its three runs, the candidate none"
    assert sorted(host.runs[1:4]) == [("good", 1), ("good", 2), ("good", 3)]


def test_slots_that_stand_idle_take_further_pairs_and_the_verdict_is_that_of_one_by_one(open_session, tmp_path):
    session, _, _ = open_session({"base": 2.0, "good": 1.97})
    seed_experiment(session)
    one_by_one = look(session, "good")
    (tmp_path / "memory.duckdb").rename(tmp_path / "other.duckdb")
    session, _, _ = open_session({"base": 2.0, "good": 1.97})
    seed_experiment(session)
    session.slots = host = SideBySide({"base": 2.0, "good": 1.97})
    session.at_once = lambda: host.batches.append(0) or 7
    at_once = look(session, "good")
    assert host.batches == [7], "three pairs with the incumbent's runs, two with both"
    assert at_once.outcome == one_by_one.outcome
    assert at_once.gain == one_by_one.gain


def test_runs_that_would_not_all_end_in_time_are_not_begun_at_once(open_session):
    """Three at a time, and each slot may be busy with a candidate at first: two rounds."""
    session, _, _ = open_session({"base": 2.0, "good": 1.5})
    seed_experiment(session)
    session.slots = host = SideBySide({"base": 2.0, "good": 1.5})
    asked: list[int] = []
    session.at_once = lambda: host.batches.append(0) or 1
    session.out_of_time = lambda rounds: asked.append(rounds) or ("" if rounds == 1 else "they would end after 07:00")
    assert look(session, "good").outcome.status is Status.KEPT
    assert asked[:2] == [1, 2]
    assert max(host.batches) <= 1, "one by one"


def test_a_gain_that_needs_no_re_run_does_not_wait_behind_those_that_do(open_session):
    session, _, _ = open_session({"base": 2.0})
    seed_experiment(session)

    def judged(value: float) -> iteration.Judged | None:
        result = RunResult(Ending.FINISHED, score=Score("val_bpb", value, "lower", 1, 3, 0.1, 0.1, 0.0))
        return iteration.judge_at_once(session, SimpleNamespace(index=1, edit=Patch(source="x = 1\n")), result)

    small = judged(1.999)
    assert small is not None
    assert small.look.outcome.status is Status.DISCARDED
    assert judged(1.8) is None


def test_without_reuse_both_arms_are_run_now_on_seeds_of_their_own(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.5}, reuse=False)
    seed_experiment(session)
    host.runs.clear()
    found = look(session, "good")
    pairs = [(source, seed) for seed in (4, 5, 6) for source in ("good", "base")]
    assert host.runs == [("good", 0), *pairs], "side by side, so that a drifting machine slows both"
    assert found.outcome.status is Status.KEPT


def test_a_lucky_first_run_is_discarded_and_rewarded_by_its_pairs(open_session):
    session, _host, _ = open_session({"base": 2.0, "lucky": 2.0})
    seed_experiment(session)
    incumbent = session.memory.incumbent("c")
    lucky = RunResult(Ending.FINISHED, score=Score("val_bpb", 1.9, "lower", 1, 3, 0.1, 0.1, 0.0))
    outcome = settle(lucky, reference(incumbent), "lower")
    found = module.second_look(session, 1, "lucky", "lucky", lucky, outcome, incumbent, Costs(None))
    assert found.outcome.status is Status.DISCARDED
    assert found.outcome.value == 1.9, "the single run stays what it was"
    assert "not confirmed" in found.outcome.reason
    rewarded = found.to_reward(reference(incumbent), "lower")
    assert rewarded.value == pytest.approx(reference(incumbent) - found.gain)
    assert rewarded.value > 1.97, "the reward does not see the luck"


class PolicyOnTheGpu:
    """A policy that has proposed, and is asked to leave the GPU."""

    def __init__(self) -> None:
        self.asked = 0

    def make_room(self) -> None:
        self.asked += 1


def test_the_policy_leaves_the_gpu_before_every_re_run(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.5})
    seed_experiment(session)
    session.config = load_config("embedded", {"policy.offload": True})
    session._policy = policy = PolicyOnTheGpu()  # a resumed second look: it has proposed, the first run is paid for
    host.runs.clear()
    look(session, "good")
    assert policy.asked == len(host.runs) - 1 == 3, "the first run makes room elsewhere"


def test_with_slots_side_by_side_a_second_look_leaves_the_policy_to_its_owner(open_session):
    session, _, _ = open_session({"base": 2.0, "good": 1.5})
    seed_experiment(session)
    session.config, session.side_by_side = load_config("embedded", {"policy.offload": True}), True
    session._policy = policy = PolicyOnTheGpu()
    look(session, "good")
    assert policy.asked == 0


def test_on_a_full_disk_no_re_run_begins_and_nothing_is_held_against_the_candidate(open_session, monkeypatch):
    session, host, _ = open_session({"base": 2.0, "good": 1.5})
    seed_experiment(session)
    before = Repeats(session.memory).of("c")
    host.runs.clear()
    with monkeypatch.context() as full:
        full.setattr(blame.shutil, "disk_usage", lambda _: SimpleNamespace(free=700 * 2**20))
        with pytest.raises(ConfigError, match=r"only 700 MiB free .*, 768 wanted; make room and resume"):
            look(session, "good")
    assert host.runs == [("good", 0)]
    assert [row.role for row in Repeats(session.memory).of("c")[len(before) :]] == [Role.FIRST]
    assert look(session, "good").outcome.status is Status.KEPT


def test_a_run_on_another_kind_of_device_ends_the_campaign_before_it_is_believed(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.9})
    seed_experiment(session)
    first = session.memory.experiment("c", 0)
    session._device = "NVIDIA A100"

    class Faster:
        count = 1

        def run(self, order: Order, on_event: Any = None) -> RunResult:
            return replace(host.run(order, on_event), extra={"performance": {"device": "NVIDIA H100"}})

    session.slots = Faster()
    with pytest.raises(
        ResearchError, match="experiment 1 ran on NVIDIA H100, this campaign's experiment 0 on NVIDIA A100"
    ):
        look(session, "good")
    assert first is not None
    assert [row.role for row in Repeats(session.memory).of("c") if row.index == 1] == [Role.FIRST]


def test_a_gain_within_the_noise_costs_no_rerun(open_session):
    session, host, _ = open_session({"base": 2.0, "even": 1.995})
    seed_experiment(session)
    host.runs.clear()
    found = look(session, "even")
    assert found.outcome.status is Status.DISCARDED
    assert "too little for a second look" in found.outcome.reason
    assert host.runs == [("even", 0)]


def test_a_candidate_that_crashes_on_a_fresh_seed_counts_as_crashed_and_earns_nothing_from_its_lucky_run(open_session):
    session, _host, _ = open_session({"base": 2.0, "fragile": None})
    seed_experiment(session)
    found = look(session, "fragile")
    assert found.outcome.status is Status.CRASHED
    assert "on one run; its re-run on seed 1 gave no score (crashed on this seed)" in found.outcome.reason
    assert found.outcome.value is None
    assert found.fields["confirmed_value"] is None
    rewarded = found.to_reward(reference(session.memory.incumbent("c")), "lower")
    terms = make_reward.fn(rewarded, 2.0, "lower", session.config.reward)
    assert terms["reward"] == session.config.reward.crashed


def test_a_candidate_that_crashes_after_good_pairs_does_not_keep_their_gain(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.97}, first_look=4)
    seed_experiment(session)
    host.fails.add(("good", 3))
    found = look(session, "good")
    assert [run for run in host.runs if run[0] == "good"] == [("good", seed) for seed in (0, 1, 2, 3)]
    assert found.outcome.status is Status.CRASHED
    assert found.gain is None
    assert found.outcome.value is None


def reigning_cheat(session: module.Session, host: MadeUpHost, found_on: int) -> Experiment:
    """A candidate that was kept and will look ahead on one seed, committed as experiment 1."""
    seed_experiment(session)
    found = look(session, "cheat")
    known = {"source": "cheat", "source_hash": "cheat", "value": found.outcome.value}
    cheat = Experiment("c", 1, found.outcome.status, **(known | found.fields))
    session.memory.commit_iteration(cheat, State())
    host.runs.clear()
    host.cheats.add(("cheat", found_on))
    return cheat


def second_look_at(session: module.Session, source: str, value: float) -> iteration.Judged:
    first = RunResult(Ending.FINISHED, score=Score("val_bpb", value, "lower", 1, 3, 0.1, 0.1, 0.0))
    proposal = SimpleNamespace(index=2, edit=Patch(source=source), costs=Costs(None))
    return iteration.look_at(session, proposal, first)  # type: ignore[arg-type]


CHEATED = {"base": 2.0, "cheat": 1.0, "good": 0.9}


def test_an_incumbent_that_is_found_out_in_a_re_run_loses_its_place_and_the_candidate_meets_the_one_before(
    open_session,
):
    session, host, said = open_session(CHEATED, reuse=False)
    assert reigning_cheat(session, host, found_on=7).status is Status.KEPT
    judged = second_look_at(session, "good", 0.9)
    assert host.runs == [
        ("good", 7),
        ("cheat", 7),
        *[(one, seed) for seed in (7, 8, 9) for one in ("good", "base")][1:],
    ]
    assert judged.bar == pytest.approx(2.0, abs=0.01), "the untouched target's"
    assert judged.look.outcome.status is Status.KEPT
    assert judged.look.gain == pytest.approx(1.1, abs=0.02), "over the untouched target"
    assert judged.look.fields["extra"]["confirmation"]["promotion"] == 2
    deposed = session.memory.experiment("c", 1)
    assert (deposed.status, deposed.cause) == (Status.REJECTED, Cause.LOOKAHEAD)
    assert (deposed.value, deposed.confirmed_value, deposed.confirmations) == (None, None, 0)
    assert "was kept, then found out in a re-run on seed 7: the logits of the past" in deposed.reason
    assert [one.index for one in session.memory.top("c")] == [0]
    assert any("experiment 1 was kept, then found out" in line and "experiment 0 again" in line for line in said)
    session.memory.commit_iteration(Experiment("c", 2, Status.DISCARDED), State())
    assert session.memory.experiment("c", 1).confirmed_value is None, "nor do its earlier re-runs count afterwards"


def test_found_out_among_runs_at_once_all_of_them_are_committed_before_the_next_incumbent_is_met(open_session):
    session, _, _ = open_session(CHEATED, reuse=False)
    session.slots = host = SideBySide(CHEATED)
    host.batches.append(0)
    reigning_cheat(session, host, found_on=8)
    session.at_once = lambda: host.batches.append(0) or 1
    assert second_look_at(session, "good", 0.9).look.outcome.status is Status.KEPT
    assert sorted(host.runs) == sorted((one, seed) for one in ("good", "cheat", "base") for seed in (7, 8, 9))
    assert session.memory.incumbent("c").index == 0


@pytest.mark.parametrize("die_at", range(1, 6))
def test_a_kill_around_the_moment_when_an_incumbent_is_found_out_repeats_the_run_in_flight_alone(open_session, die_at):
    session, host, _ = open_session(CHEATED, reuse=False)
    reigning_cheat(session, host, found_on=7)
    host.die_at = die_at
    with pytest.raises(Killed):
        second_look_at(session, "good", 0.9)
    resumed, again, _ = open_session(CHEATED, reuse=False)
    again.cheats |= host.cheats
    judged = second_look_at(resumed, "good", 0.9)
    assert judged.look.outcome.status is Status.KEPT
    assert judged.look.gain == pytest.approx(1.1, abs=0.02)
    assert len(host.runs + again.runs) == len(set(host.runs + again.runs)) == 7


def test_the_untouched_target_keeps_its_place_since_nothing_stands_behind_it(open_session):
    session, host, _ = open_session({"base": 2.0, "good": 1.5}, reuse=False)
    seed_experiment(session)
    host.cheats.add(("base", 4))
    assert look(session, "good").outcome.status is Status.KEPT
    assert session.memory.incumbent("c").index == 0


def test_a_crash_of_an_incumbent_is_no_reason_to_depose_it(open_session):
    session, host, _ = open_session(CHEATED, reuse=False)
    reigning_cheat(session, host, found_on=99)
    host.fails.add(("cheat", 7))
    second_look_at(session, "good", 0.9)
    assert session.memory.incumbent("c").index == 1


def test_re_runs_are_bounded(open_session):
    session, host, _ = open_session(
        {"base": 2.0, "small": 1.973}, max_reruns=4, first_look=4, second_look=0.0, confidence=0.955
    )
    seed_experiment(session)
    host.runs.clear()
    found = look(session, "small")
    assert found.outcome.status is Status.DISCARDED
    assert [run for run in host.runs if run[0] == "small" and run[1]] == [("small", seed) for seed in (1, 2, 3, 4)]
    assert [run for run in host.runs if run[0] == "base"] == [("base", 4)], "the incumbent lacked one seed of four"
    session.memory.commit_iteration(Experiment("c", 1, Status.DISCARDED), State())
    baseline = session.memory.experiment("c", 0)
    assert baseline.confirmations == 4, "and its mean now counts it"


def test_an_early_stopped_run_is_never_promoted(open_session):
    session, host, _ = open_session({"base": 2.0})
    seed_experiment(session)
    incumbent = session.memory.incumbent("c")
    stopped = RunResult(Ending.STOPPED, reason="hopeless")
    outcome = settle(stopped, reference(incumbent), "lower")
    host.runs.clear()
    found = module.second_look(session, 1, "x", "x", stopped, outcome, incumbent, Costs(None))
    assert found.outcome.status is Status.STOPPED_EARLY
    assert host.runs == []


def test_without_confirmation_any_better_single_run_is_kept(open_session):
    session, host, _ = open_session({"base": 2.0, "even": 1.999}, enabled=False)
    seed_experiment(session)
    assert host.runs == [("base", 0)]
    assert look(session, "even").outcome.status is Status.KEPT
