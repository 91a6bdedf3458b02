"""What a report says a campaign found."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from arl_core.edit import canonical_diff, levers, levers_seen_from
from arl_core.records import Campaign, Experiment, confirmed_words
from arl_core.report import CampaignData, findings, signs, view, words
from arl_core.report.cautions import cautions
from arl_core.report.figures import duration
from arl_core.theory import best_so_far, improvement_rate
from frozen_env.contract import Status

CAMPAIGN_ROW = Campaign("c", "embedded", {}, "digest", 0, "2026-11-23T21:00:00+00:00", "language_model")
SEED = "LR = 1\nWIDTH = 2\n\n\ndef f(x):\n    y = x\n    return y\n\n\nclass A:\n    def g(self):\n        return 1\n"


def one(index: int, value: float | None = None, status: Status | None = None, **fields: object) -> Experiment:
    known: dict[str, object] = {"metric": "val_bpb", "parent_index": 0 if index else None, "source": SEED}
    status = status or (Status.DISCARDED if value is not None else Status.CRASHED)
    return Experiment("c", index, status, value=value, **(known | fields))  # type: ignore[arg-type]


def kept(index: int, value: float, **fields: object) -> Experiment:
    return one(index, value, Status.KEPT, **fields)


CAMPAIGN = [
    kept(0, 2.0),
    one(1),
    kept(2, 1.8, incumbent_value=2.0),
    one(3, 1.9, parent_index=2, incumbent_value=1.8),
    one(4, status=Status.STOPPED_EARLY, estimate=2.1, parent_index=2, incumbent_value=1.8, costs={"training": 5.0}),
    kept(5, 1.5, parent_index=2, incumbent_value=1.8),
]


def test_the_staircase_holds_the_best_so_far():
    assert findings.staircase(CAMPAIGN) == [(0, 2.0), (1, 2.0), (2, 1.8), (3, 1.8), (4, 1.8), (5, 1.5)]
    assert findings.gains(CAMPAIGN) == pytest.approx([0, 0.2, 0, 0, 0.3])


def test_higher_is_better_where_the_metric_says_so():
    up = [dataclasses.replace(each, direction="higher") for each in (kept(0, 1.0), kept(1, 1.5), kept(2, 1.2))]
    assert [value for _, value in findings.staircase(up)] == [1.0, 1.5, 1.5]
    assert findings.answer(up).gain == pytest.approx(0.5)


def test_the_answer_names_start_best_and_gain():
    found = findings.answer(CAMPAIGN)
    assert (found.start.index, found.best.index) == (0, 5)
    assert found.gain == pytest.approx(0.5)
    assert found.share == pytest.approx(0.25)
    assert found.improved
    assert not found.confirmed


def test_a_confirmed_mean_stands_before_a_lucky_run():
    lucky = kept(1, 1.2, confirmed_value=1.7, confirmations=3)
    found = findings.answer([kept(0, 2.0), lucky])
    assert found.confirmed
    assert found.gain == pytest.approx(0.3)


def sure(index: int, mean: float, promotion: int) -> Experiment:
    told = {"confirmation": {"promotion": promotion, "noise_sd": 0.02}}
    return kept(index, mean - 0.1, confirmed_value=mean, confirmations=3, extra=told)


def test_of_confirmed_ones_the_last_promoted_leads_whatever_its_mean() -> None:
    campaign = [sure(0, 2.0, 1), sure(1, 1.6, 2), sure(2, 1.61, 3), kept(3, 1.2)]
    assert [held.index for held in findings.incumbents(campaign)] == [0, 1, 2, 2]
    assert findings.answer(campaign).gain == pytest.approx(0.39)
    assert [step.experiment.index for step in findings.improvements(campaign)] == [1, 2]
    assert findings.noise_sd(campaign) == 0.02


def test_the_headlines_standard_error_is_the_one_that_tables_show() -> None:
    """The noise becomes better known as a campaign goes on; an error is told as it was known at the promotion."""
    later = one(2, 1.65, confirmed_value=1.65, confirmations=3, extra={"confirmation": {"noise_sd": 0.08}})
    campaign = [sure(0, 2.0, 1), sure(1, 1.6, 2), later]
    assert findings.noise_sd(campaign) == 0.08
    assert confirmed_words(campaign[1]) == "1.6000 ± 0.0115 ×3"
    lead = str(words.hero(findings.answer(campaign), "val_bpb", "lower", campaign)["lead"])
    assert lead.endswith("The mean of 3 fresh seeds, ± 0.0115 standard error.")
    unknown = dataclasses.replace(campaign[1], extra={"confirmation": {"promotion": 2, "noise_sd": "nan"}})
    campaign[1] = unknown
    assert "standard error" not in str(words.hero(findings.answer(campaign), "val_bpb", "lower", campaign)["lead"])


def test_the_theorys_process_ends_where_the_staircase_does() -> None:
    campaign = [sure(0, 2.0, 1), sure(1, 1.6, 2), sure(2, 1.61, 3), one(3)]
    steps, won = findings.staircase(campaign), findings.gains(campaign)
    process = best_so_far(steps[0][1], won, "lower")
    assert [value for _, value in steps] == [2.0, 1.6, 1.61, 1.61]
    assert process.best.tolist() == pytest.approx([2.0, 1.6, 1.61, 1.61])
    told = view.build(CampaignData(CAMPAIGN_ROW, campaign))["outlook"]["assumptions"]
    assert any("At 1 promotion the line moves the wrong way" in line for line in told)


def test_a_promoted_one_is_told_of_even_where_its_own_mean_is_no_better() -> None:
    campaign = [sure(0, 1.6, 1), sure(1, 1.61, 2)]
    found = findings.answer(campaign)
    assert found.improved
    assert found.gain == pytest.approx(-0.01)
    hero = words.hero(found, "val_bpb", "lower", campaign)
    assert hero["verdict"] == "improved, confirmed"
    assert hero["title"] == "val_bpb 1.6100, no better by its mean than 1.6000 at the start"
    assert str(hero["lead"]).startswith("Found by experiment 1 of 1. It beat its predecessor on common seeds")


@pytest.mark.parametrize(
    ("noise_sd", "programs", "told"),
    [(0.034, 12, True), (0.034, 11, False), (0.02, 12, False)],
    ids=["disturbed repeats", "too few programs to say", "below three times"],
)
def test_repeats_that_lie_further_apart_than_programs_do_are_told(noise_sd: float, programs: int, told: bool) -> None:
    """The middle half of twelve programs 0.002 apart has a standard deviation of 0.0096; 0.034 is more than three of them."""
    start = kept(0, 1.78, confirmed_value=1.71, confirmations=3, extra={"confirmation": {"noise_sd": noise_sd}})
    campaign = [start, *(one(1 + k, 1.70 + 0.002 * k) for k in range(programs)), one(60)]
    found = signs.noise_above_spread(campaign)
    assert (found is not None) == told
    lines = cautions(findings.answer(campaign), campaign, noise_sd)
    assert any("other work seems to have disturbed" in line for line in lines) == told


@pytest.mark.parametrize(
    ("new", "repeated", "told"),
    [(15, 17, (15, 32)), (16, 16, None), (7, 8, None), (7, 9, (7, 16)), (40, 0, None)],
    ids=["more than half", "just half", "too few to say", "half a window", "all new"],
)
def test_a_policy_that_repeats_itself_is_told(new: int, repeated: int, told: tuple[int, int] | None) -> None:
    proposals = [one(1 + k) for k in range(new)]
    proposals += [one(1 + new + k, status=Status.DUPLICATE if k % 2 else Status.REJECTED) for k in range(repeated)]
    campaign = [kept(0, 2.0), *proposals]
    assert signs.repeats_itself(campaign) == told
    lines = cautions(findings.answer(campaign), campaign, None)
    assert any("the policy repeats itself" in line for line in lines) == (told is not None)


def crashed(index: int, reason: str = "exited with 1: CUDA error") -> Experiment:
    return one(index, reason=reason)


@pytest.mark.parametrize(
    ("ran", "crashes", "ran_after", "told"),
    [
        (7, 9, 0, (9, 16)),
        (8, 8, 0, None),
        (20, 9, 0, (9, 16)),
        (3, 5, 0, (5, 8)),
        (0, 7, 0, None),
        (0, 30, 7, (9, 16)),
        (0, 30, 8, None),
    ],
    ids=["nine of sixteen", "just half", "only the latest", "five of eight", "too few", "mending", "mended"],
)
def test_a_machine_that_makes_most_proposals_crash_is_told_until_it_is_mended(
    ran: int, crashes: int, ran_after: int, told: tuple[int, int] | None
) -> None:
    campaign = [kept(0, 2.0), *(one(1 + k, 2.1) for k in range(ran))]
    campaign += [crashed(1 + ran + k) for k in range(crashes)]
    campaign += [one(1 + ran + crashes + k, 2.1) for k in range(ran_after)]
    found = signs.mostly_crashes(campaign)
    assert (found and (found.crashed, found.proposals)) == told
    lines = cautions(findings.answer(campaign), campaign, None)
    said = [line for line in lines if "crashed, most often with “exited with 1: CUDA error”" in line]
    assert len(said) == (told is not None)
    assert all("read that experiment's log" in line and "python -m bench.gpu_probe" in line for line in said)


def test_the_commonest_reason_of_crashes_is_told_in_the_latest_words_that_differ_in_numbers_alone() -> None:
    told = [*(f"out of memory: {k} MiB wanted" for k in range(5)), "loss is NaN", "loss is NaN", "no such name"]
    campaign = [kept(0, 2.0), *(crashed(1 + k, reason) for k, reason in enumerate(told))]
    found = signs.mostly_crashes(campaign)
    assert found == signs.Crashes(8, 8, "out of memory: 4 MiB wanted", 5, 5)
    nameless = [kept(0, 2.0), *(crashed(1 + k, "") for k in range(8))]
    lines = cautions(findings.answer(nameless), nameless, None)
    assert any("8 crashed, most often without a reason (8×, last in experiment 8)" in line for line in lines)


def paced(index: int, tokens_per_s: float, **fields: object) -> Experiment:
    known: dict[str, object] = {"extra": {"performance": {"tokens_per_s": tokens_per_s}}}
    return one(index, 2.1, **(known | fields))


@pytest.mark.parametrize(
    ("paces", "told", "words_of_it"),
    [
        ([810.0] * 6 + [1000.0] * 2, (0.81, 8), "gains may then have been missed"),
        ([1250.0] * 8, (1.25, 8), "a gain may then be the machine's"),
        ([810.0] * 5 + [1000.0] * 3, None, ""),
        ([950.0] * 8, None, ""),
        ([810.0] * 8 + [1000.0] * 3, None, ""),
        ([810.0] * 4 + [1250.0] * 4, None, ""),
    ],
    ids=["slower", "faster", "five of eight", "jitter", "over again", "both ways"],
)
def test_a_machine_that_has_changed_its_pace_is_told(paces, told, words_of_it):
    campaign = [kept(0, 2.0, extra={"performance": {"tokens_per_s": 1000.0}})]
    campaign += [paced(1 + k, pace) for k, pace in enumerate(paces)]
    assert signs.other_pace(campaign) == told
    lines = cautions(findings.answer(campaign), campaign, None)
    assert any("tokens a second as the programs that they edit" in line for line in lines) == (told is not None)
    assert told is None or any(words_of_it in line for line in lines)


def test_each_run_is_held_against_the_program_that_it_edits():
    """A slower incumbent makes all of its edits slower, and nothing has happened to the machine."""
    campaign = [
        kept(0, 2.0, extra={"performance": {"tokens_per_s": 1000.0}}),
        paced(1, 500.0, status=Status.KEPT),
        *(paced(2 + k, 500.0, parent_index=1) for k in range(8)),
    ]
    assert signs.other_pace(campaign) is None


def test_a_run_that_crashed_or_tells_no_pace_is_not_counted():
    campaign = [
        kept(0, 2.0, extra={"performance": {"tokens_per_s": 1000.0}}),
        *(paced(1 + k, 100.0, status=Status.CRASHED) for k in range(4)),
        *(one(5 + k, 2.1, extra={"performance": {"tokens_per_s": None}}) for k in range(4)),
        *(one(9 + k, 2.1) for k in range(4)),
    ]
    assert signs.other_pace(campaign) is None


@pytest.mark.parametrize("campaign", [[], [one(0)], [kept(0, 2.0)], [kept(0, 2.0), one(1, 2.1), one(2)]])
def test_nothing_found_is_an_answer_too(campaign):
    found = findings.answer(campaign)
    assert not found.improved
    assert found.gain == 0
    assert findings.improvements(campaign) == []


def test_the_lineage_leads_from_the_seed_to_the_best_and_counts_what_was_tried():
    way = findings.lineage(CAMPAIGN)
    assert [generation.experiment.index for generation in way] == [0, 2, 5]
    assert [generation.gain for generation in way] == pytest.approx([0, 0.2, 0.3])
    assert way[1].tried == Counter({Status.DISCARDED: 1, Status.STOPPED_EARLY: 1, Status.KEPT: 1})
    assert findings.depths(CAMPAIGN) == {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2}


def test_a_lineage_that_bites_its_tail_ends():
    looped = [kept(0, 2.0, parent_index=1), kept(1, 1.0, parent_index=0)]
    assert [generation.experiment.index for generation in findings.lineage(looped)] == [0, 1]


def test_savings_count_the_training_that_stops_spared():
    runs = [kept(0, 2.0, costs={"training": 20.0}), one(1, 2.1, costs={"training": 20.0}), CAMPAIGN[4]]
    saved = findings.savings(runs, 20.0)
    assert (saved.stopped, saved.ran, saved.spent_s, saved.saved_s) == (1, 2, 25.0, 15.0)
    assert saved.throughput == pytest.approx(40 / 25)
    assert findings.savings([], 20.0).throughput == 1.0


def edit(index: int, old: str, new: str, **fields: object) -> Experiment:
    source = SEED.replace(old, new)
    return one(index, source=source, diff=canonical_diff(SEED, source), incumbent_value=2.0, **fields)


def test_levers_are_the_constants_and_functions_that_changed_lines_belong_to():
    for old, new, names in (
        ("LR = 1", "LR = 3", ("LR",)),
        ("    y = x", "    # why\n    y = 2 * x", ("f",)),
        ("return 1", "return 2", ("A.g",)),
        ("WIDTH = 2\n", "WIDTH = 2\nDEPTH = 3\n", ("DEPTH",)),
        ("class A", "def h():\n    pass\n\n\nclass A", ("h",)),
        ("    return y\n", "", ("f",)),
        ("LR = 1\n", "# a comment\nLR = 1\n", ()),
    ):
        source = SEED.replace(old, new)
        assert set(names) <= set(levers(SEED, canonical_diff(SEED, source))), (old, new)
        assert names or levers(SEED, canonical_diff(SEED, source)) == ()
        edited = canonical_diff(SEED, source)
        assert set(names) <= set(levers_seen_from(source, edited)), "the same from the edited side"
    assert levers("not ( python", canonical_diff("not ( python", "not")) == ("(module)",)


def test_a_levers_effect_is_the_mean_gain_of_the_edits_that_touched_it():
    tried = [
        kept(0, 2.0),
        edit(1, "LR = 1", "LR = 3", value=1.9, status=Status.KEPT),
        edit(2, "LR = 1", "LR = 4", value=2.3),
        edit(3, "LR = 1", "LR = 5"),
        edit(4, "y = x", "y = 0", status=Status.STOPPED_EARLY, estimate=2.5),
    ]
    by_name = {effect.name: effect for effect in findings.lever_effects(tried)}
    rate = by_name["LR"]
    assert (rate.tried, rate.ran, rate.improved) == (3, 2, 1)
    assert rate.mean_gain == pytest.approx(-0.1)
    assert rate.standard_error == pytest.approx(0.2)
    assert by_name["f"].mean_gain == pytest.approx(-0.5)
    assert by_name["f"].standard_error is None


def test_learning_is_told_per_update():
    some = [
        kept(0, 2.0),
        one(1, reward=-0.8),
        one(2, 2.1, reward=0.2, extra={"update": {"entropy": 0.5}}),
        one(3, reward=-0.8),
    ]
    (point,) = findings.learning(some)
    assert (point.index, point.proposals, point.valid, point.improving) == (2, 2, 0.5, 0.0)
    assert point.reward_mean == pytest.approx(-0.3)
    assert point.metrics == {"entropy": 0.5}


def test_the_reward_of_an_update_is_that_of_its_own_batch() -> None:
    """Side by side the batch is what landed first, which rows in order of their index do not tell."""
    some = [kept(0, 2.0), one(1, reward=-0.8), one(2, reward=0.2, extra={"update": {"reward_batch_mean": 0.1}})]
    assert findings.learning(some)[0].reward_mean == 0.1


def test_time_adds_up_to_the_wall_clock():
    costs = {"propose": 3.0, "training": 10.0, "scoring": 1.0, "startup": 0.5, "run": 12.0, "iteration": 16.0}
    parts = findings.time_by_part([one(0, costs=costs), one(1, costs=costs | {"before/between": 2.0})])
    assert sum(parts.values()) == pytest.approx(34.0)
    assert parts["training"] == 20.0
    assert parts["policy"] == 6.0
    assert parts["rest"] == pytest.approx(34 - 20 - 2 - 1 - 6)


def ended(index: int, at: datetime, **costs: float) -> Experiment:
    return one(index, 2.0, costs={"training": 90.0, "iteration": 100.0, **costs}, created_at=at.isoformat())


def test_candidates_side_by_side_are_a_pace_by_the_wall_clock() -> None:
    began = datetime(2026, 11, 23, 21, tzinfo=UTC)
    first = dataclasses.replace(ended(0, began + timedelta(seconds=100)), status=Status.KEPT)
    pair = [ended(k, began + timedelta(seconds=200 + k), **{"before/between": 1.0}) for k in (1, 2)]
    straggler = ended(3, began + timedelta(seconds=205), iteration=103.0)
    tomorrow = ended(4, began + timedelta(days=1))
    assert findings.wall_clock_s([first]) == 100
    side_by_side = [first, *pair, straggler]
    assert findings.wall_clock_s(side_by_side) == pytest.approx(205), "the second between two counts"
    assert findings.wall_clock_s([*side_by_side, tomorrow]) == pytest.approx(305), "the night between does not"
    content = view.build(CampaignData(CAMPAIGN_ROW, side_by_side))
    note = "3 min in all, 51.2 s an experiment. Times of candidates side by side add up, here to 7 min;"
    assert content["time_note"].startswith(note)
    needed = improvement_rate(findings.gains(side_by_side), 0.0).needed_predictive
    assert content["outlook"]["rows"][0]["hours"] == duration(needed * 205 / 4)


def test_one_candidate_after_the_other_the_parts_are_the_wall_clock() -> None:
    began = datetime(2026, 11, 23, 21, tzinfo=UTC)
    alone = [ended(k, began + timedelta(seconds=102 * k), **({"before/between": 2.0} if k else {})) for k in range(4)]
    parts = findings.time_by_part(alone)
    assert findings.wall_clock_s(alone) == pytest.approx(sum(parts.values())) == pytest.approx(406)
    assert "side by side" not in words.time_note(parts, 4, findings.wall_clock_s(alone))


def test_without_recorded_times_the_parts_stand_for_the_wall_clock() -> None:
    assert findings.wall_clock_s([]) == 0
    assert findings.wall_clock_s([one(0, costs={"iteration": 7.0}), one(1, costs={"iteration": 8.0})]) == 15


def test_the_command_that_goes_on_names_a_memory_of_its_own() -> None:
    def told(**config: object) -> str:
        row = dataclasses.replace(CAMPAIGN_ROW, config=config)
        return view.build(CampaignData(row, CAMPAIGN, cut_off=True))["campaign"]["go_on"]

    assert told() == told(memory="mlruns/memory.duckdb") == "python -m flows.research --preset embedded --resume c"
    assert told(memory="my runs/m.duckdb").endswith("--resume c --set memory='my runs/m.duckdb'")
