"""Re-runs in the memory: each a committed row, found again after a kill; and what the decisions read from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from arl_core.config import ConfirmSettings
from arl_core.confirm import Decision, Judgement, Noise
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.memory_file import SCHEMA_VERSION
from arl_core.outcome import Outcome
from arl_core.records import Campaign, Experiment, State, confirmed_words
from arl_core.repeats import Repeat, Repeats, Role
from arl_core.second_look import Evidence, baseline_seeds, fresh_seeds, mean_of, reference, settled, too_small
from frozen_env.contract import Cause, Ending, Report, RunResult, Score, Status


def campaign(name: str = "c", digest: str = "digest") -> Campaign:
    return Campaign(name, "embedded", {}, digest, 0, "2026-11-24T00:00:00+00:00", "language_model")


def repeat(seed: int, value: float | None, role: Role = Role.CANDIDATE, index: int = 1, **fields: object) -> Repeat:
    known: dict[str, object] = {"source_hash": "aa", "against": "base" if role is Role.CANDIDATE else ""}
    return Repeat("c", index, role, seed=seed, value=value, **(known | fields))  # type: ignore[arg-type]


def first_run(value: float) -> RunResult:
    score = Score("val_bpb", value, "lower", 100, 300, 0.1, 0.1, 0.0)
    reports = (Report(1, 0.5, 0.1, float("inf")), Report(2, 1.0, 0.2, 3.0, 1e-3))
    return RunResult(Ending.FINISHED, Cause.NONE, "", score, reports, log_tail="a\udc80b")


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(campaign())
    return memory


def test_every_row_comes_back_in_the_order_of_its_commit(memory: Memory):
    rows = [repeat(2, 1.5, reason=""), repeat(1, None, reason="crashed"), repeat(3, 1.4, Role.INCUMBENT, seconds=20.0)]
    for row in rows:
        Repeats(memory).add(row)
    assert Repeats(Memory(memory.path, read_only=True)).of("c") == rows


def test_one_run_of_one_program_on_one_seed_is_one_row(memory: Memory):
    Repeats(memory).add(repeat(2, 1.5))
    with pytest.raises(ValueError, match="seed 2"):
        Repeats(memory).add(repeat(2, 1.6))
    assert [row.value for row in Repeats(memory).of("c")] == [1.5]


def test_a_first_run_is_kept_whole_until_its_experiment_is_committed(memory: Memory):
    repeats = Repeats(memory)
    repeats.add(repeat(0, 1.5, Role.FIRST, level=0.01), result=first_run(1.5))
    assert repeats.first_result("c", "aa") == first_run(1.5)
    assert repeats.first_result("c", "bb") is None
    memory.commit_iteration(Experiment("c", 1, Status.DISCARDED), State())
    assert repeats.first_result("c", "aa") is None
    assert [row.level for row in repeats.of("c")] == [0.01], "the row itself stays: its level is spent"


def test_a_further_run_of_the_incumbent_counts_from_the_commit_of_the_candidate_on(memory: Memory):
    """Killed in between, the campaign must propose the same edit again: from the record as the proposal found it."""
    kept = Experiment("c", 0, Status.KEPT, value=1.6, confirmed_value=1.61, confirmations=3, metric="val_bpb")
    memory.commit_iteration(kept, State())
    Repeats(memory).add(repeat(4, 1.65, Role.INCUMBENT), confirmed=(0, 1.62, 4))
    Repeats(memory).add(repeat(5, 1.66, Role.INCUMBENT), confirmed=(0, 1.63, 5))
    assert memory.experiment("c", 0) == kept
    memory.commit_iteration(Experiment("c", 1, Status.DISCARDED), State())
    assert memory.experiment("c", 0) == replace(kept, confirmed_value=1.63, confirmations=5)


def test_of_candidates_side_by_side_the_one_that_saw_most_runs_of_the_incumbent_counts(memory: Memory):
    kept = Experiment("c", 0, Status.KEPT, value=1.6, confirmed_value=1.61, confirmations=3, metric="val_bpb")
    memory.commit_iteration(kept, State())
    Repeats(memory).add(repeat(4, 1.65, Role.INCUMBENT, 2), confirmed=(0, 1.62, 4))
    Repeats(memory).add(repeat(5, 1.66, Role.INCUMBENT, 1), confirmed=(0, 1.63, 5))
    for index in (1, 2):
        memory.commit_iteration(Experiment("c", index, Status.DISCARDED), State())
    assert memory.experiment("c", 0) == replace(kept, confirmed_value=1.63, confirmations=5)


def test_earlier_campaigns_count_on_the_same_frozen_environment_only(memory: Memory):
    for name, digest in (("same", "digest"), ("other", "another")):
        memory.create_campaign(campaign(name, digest))
        Repeats(memory).add(Repeat(name, 0, Role.BASELINE, "base", 1, 1.6))
    assert [row.campaign_id for row in Repeats(memory).earlier("digest", "c")] == ["same"]


def on(device: str) -> dict[str, dict[str, str]]:
    return {"performance": {"device": device}}


def test_earlier_campaigns_on_another_device_teach_no_noise(memory: Memory):
    for name in ("fast", "slow", "silent"):
        memory.create_campaign(campaign(name, "digest"))
        Repeats(memory).add(Repeat(name, 0, Role.BASELINE, "base", 1, 1.6))
    memory.commit_iteration(Experiment("fast", 0, Status.KEPT, extra=on("fast GPU")), State())
    memory.commit_iteration(Experiment("slow", 0, Status.KEPT, extra=on("slow GPU")), State())

    def earlier(device: str = "") -> list[str]:
        return [row.campaign_id for row in Repeats(memory).earlier("digest", "c", device=device)]

    assert earlier() == ["fast", "slow", "silent"], "nobody has told yet where this campaign runs"
    assert earlier("slow GPU") == ["slow", "silent"]
    memory.commit_iteration(Experiment("c", 0, Status.KEPT, extra=on("fast GPU")), State())
    assert earlier() == ["fast", "silent"]


def test_repeats_of_nobody_are_refused(memory: Memory):
    with pytest.raises(ConfigError, match="nobody"):
        Repeats(memory).add(Repeat("nobody", 0, Role.BASELINE, "base", 1, 1.6))


def test_a_memory_of_the_version_before_gains_the_table_and_keeps_the_rest(memory: Memory):
    memory.commit_iteration(Experiment("c", 0, Status.KEPT, value=1.6), State())
    memory.close()
    with duckdb.connect(str(memory.path)) as db:
        db.execute("drop table repeats")
        db.execute("update schema_version set version = 2")
    assert Repeats(Memory(memory.path, read_only=True)).of("c") == [], "a reader changes nothing"
    upgraded = Memory(memory.path)
    Repeats(upgraded).add(repeat(1, 1.5))
    assert upgraded.experiments("c")[0].value == 1.6
    upgraded.close()
    with duckdb.connect(str(memory.path), read_only=True) as db:
        assert db.execute("select version from schema_version").fetchall() == [(SCHEMA_VERSION,)]


# --- who is the incumbent, who is on top -------------------------------------------------------------------------------


def confirmed(index: int, value: float, mean: float, promotion: int, status: Status = Status.KEPT) -> Experiment:
    told = (
        {"confirmation": {"promotion": promotion, "noise_sd": 0.02}}
        if promotion
        else {"confirmation": {"noise_sd": 0.02}}
    )
    return Experiment("c", index, status, value=value, confirmed_value=mean, confirmations=4, extra=told)


def test_the_incumbent_is_who_was_promoted_last_whatever_single_runs_say(memory: Memory):
    memory.commit_iteration(confirmed(0, 1.55, 1.60, 1), State())  # a lucky single run
    memory.commit_iteration(confirmed(2, 1.58, 1.57, 2), State())
    memory.commit_iteration(confirmed(1, 1.56, 1.58, 3), State())  # beat it in pairs, though its own mean is higher
    memory.commit_iteration(confirmed(3, 1.30, 1.62, 0, Status.DISCARDED), State())  # luck, refuted
    incumbent = memory.incumbent("c")
    assert incumbent is not None
    assert incumbent.index == 1


def test_the_top_is_ordered_by_means_over_fresh_seeds_where_there_are_any(memory: Memory):
    memory.commit_iteration(confirmed(0, 1.55, 1.60, 1), State())
    memory.commit_iteration(confirmed(1, 1.30, 1.62, 0, Status.DISCARDED), State())
    memory.commit_iteration(Experiment("c", 2, Status.DISCARDED, value=1.61), State())
    assert [one.index for one in memory.top("c")] == [0, 2, 1]


def test_the_value_to_compare_with_is_the_mean_over_fresh_seeds():
    assert reference(confirmed(0, 1.55, 1.60, 1)) == 1.60
    assert reference(Experiment("c", 0, Status.KEPT, value=1.55)) == 1.55
    with pytest.raises(ValueError, match="None"):
        reference(Experiment("c", 0, Status.CRASHED))


def test_a_confirmed_value_is_told_with_its_error_and_runs():
    assert confirmed_words(confirmed(0, 1.55, 1.60, 1)) == "1.6000 ± 0.0100 ×4"
    assert confirmed_words(Experiment("c", 0, Status.KEPT, value=1.55)) == ""


# --- evidence ---------------------------------------------------------------------------------------------------------

ROWS = (
    repeat(0, 1.60, Role.FIRST, 0, source_hash="base"),
    repeat(1, 1.62, Role.BASELINE, 0, source_hash="base"),
    repeat(2, 1.64, Role.BASELINE, 0, source_hash="base"),
    repeat(0, 1.50, Role.FIRST, level=0.004),
    repeat(1, 1.60),
    repeat(2, 1.58),
    repeat(3, None),
    repeat(3, 1.63, Role.INCUMBENT, source_hash="base"),
)


def test_the_selecting_run_is_not_among_a_programs_results():
    assert Evidence(ROWS).results("aa") == {1: 1.60, 2: 1.58, 3: None}
    assert Evidence(ROWS).results("base") == {1: 1.62, 2: 1.64, 3: 1.63}


def test_the_noise_pools_the_baseline_and_the_pairs():
    noise = Evidence(ROWS).noise()
    assert noise is not None
    # baseline 1.60 1.62 1.64: squares 0.0008, 2 df; gains 0.02 0.06: squares 0.0008 / 2, 1 df
    assert noise.df == 3
    assert noise.variance == pytest.approx((0.0008 + 0.0004) / 3)


def test_a_program_is_not_judged_by_a_noise_that_its_own_pairs_are_part_of():
    earlier = [Repeat("b", 0, Role.BASELINE, "base", seed, 1.7 + 0.01 * seed) for seed in range(3)]
    noise = Evidence(ROWS, earlier).noise(without="aa")
    assert noise is not None
    assert noise.df == 4, "the baseline's repeats of both campaigns"


def test_earlier_campaigns_add_to_the_noise_and_to_nothing_else():
    earlier = [Repeat("b", 0, Role.BASELINE, "base", seed, 1.7 + 0.01 * seed) for seed in range(3)]
    both = Evidence(ROWS, earlier)
    noise = both.noise()
    assert noise is not None
    assert noise.df == 5
    assert both.results("base") == Evidence(ROWS).results("base")
    assert both.spent() == Evidence(ROWS).spent()


def test_a_level_is_spent_once_a_test_was_begun():
    assert Evidence(ROWS).spent() == [0.004]
    assert Evidence(ROWS).level("aa") == 0.004
    assert Evidence(ROWS).level("base") is None


def test_fresh_seeds_are_never_the_campaigns():
    assert fresh_seeds(0, 3) == [1, 2, 3]
    assert 2**31 - 1 not in fresh_seeds(2**31 - 1, 5)


def test_a_mean_is_over_what_gave_a_value():
    assert mean_of({1: 1.0, 2: None, 3: 2.0}) == (1.5, 2)
    assert mean_of({1: None}) == (None, 0)


# --- what becomes of a candidate, in words ----------------------------------------------------------------------------

BETTER = Outcome(Status.KEPT, Cause.NONE, "", 1.5)


@pytest.mark.parametrize(
    ("decision", "failure", "status", "words"),
    [
        (
            Decision.PROMOTE,
            "",
            Status.KEPT,
            "confirmed in 4 paired re-runs (mean gain +0.0200 ± 0.0050, p 0.001, needed 0.004)",
        ),
        (
            Decision.DROP,
            "",
            Status.DISCARDED,
            "beat the incumbent by 0.0300 on one run; not confirmed in 4 paired re-runs",
        ),
        (Decision.CONTINUE, "", Status.DISCARDED, "not confirmed"),
        (Decision.PROMOTE, "the incumbent failed", Status.DISCARDED, "on one run; the incumbent failed"),
    ],
)
def test_the_outcome_says_what_the_test_found(decision, failure, status, words):
    outcome = settled(BETTER, 0.03, Judgement(decision, 4, 0.02, 0.005, 0.001, 0.004), failure)
    assert outcome.status is status
    assert words in outcome.reason
    assert outcome.value == 1.5, "the single run is kept apart"


def test_a_program_that_failed_on_a_fresh_seed_has_no_value_however_good_its_pairs():
    outcome = settled(BETTER, 0.03, Judgement(Decision.PROMOTE, 4, 0.02, 0.005, 0.001, 0.004), crash="it broke")
    assert outcome.status is Status.CRASHED
    assert outcome.value is None
    assert outcome.reason == "beat the incumbent by 0.0300 on one run; it broke"


@pytest.mark.parametrize(
    ("tried", "seeds"),
    [
        ({}, [1, 2, 3]),
        ({1: 2.0, 2: None}, [1, 2, 3]),
        ({1: None, 2: None}, [1, 2, 3]),  # interrupted: one is left to try
        ({1: None, 2: None, 3: None}, [4, 5, 6]),
        ({1: None, 2: None, 3: None, 4: 2.0}, [4, 5, 6]),  # interrupted in its second attempt
    ],
)
def test_a_noise_floor_that_failed_as_a_whole_takes_other_seeds(tried, seeds):
    assert baseline_seeds(0, 3, tried) == seeds


def test_without_a_pair_nothing_is_kept():
    assert settled(BETTER, 0.03, None).status is Status.DISCARDED


def test_a_gain_within_the_noise_says_so():
    outcome = too_small(BETTER, 0.003, Noise(0.01**2, 3), 1.0)
    assert outcome.status is Status.DISCARDED
    assert outcome.reason == "beat the incumbent by 0.0030 on one run; too little for a second look (from 0.0141 on)"


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must not exceed max_reruns = 4"):
        ConfirmSettings(first_look=5, max_reruns=4)
