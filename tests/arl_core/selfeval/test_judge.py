"""The verdict as a truth table: (curve, incumbent, completed runs) -> stop or go on, and what it says."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest

from arl_core.selfeval import Curve, Forecaster, PastRun, Snapshot, make_judge
from arl_core.selfeval.snapshot import AUDIT_RULE, is_judged, stands_for
from frozen_env.contract import Progress, Report, Verdict
from tests.arl_core.selfeval.campaigns import SCALE, progress, reports, snapshot

SEEDLING = [2.10, 2.05, 2.08, 2.02]  # four completed runs; the incumbent ended at 2.02
SEASONED = [2.10, 2.05, 2.08, 2.02, 2.04, 2.00, 2.06, 2.03, 2.01, 1.99, 2.07, 2.05]  # the incumbent ended at 1.99


@pytest.mark.parametrize(
    ("completed", "final", "fraction", "stop"),
    [
        ([], 2.5, 0.5, False),  # the untouched seed: nothing to compare with
        (SEEDLING[:3], 2.5, 0.5, False),  # three runs are too few, however bad it looks
        (SEEDLING, 2.5, 0.5, True),  # four suffice for a run that is far off
        (SEEDLING, 2.03, 0.5, False),  # but not for one that nearly ties
        (SEEDLING, 1.9, 0.5, False),  # a better run goes on
        (SEASONED, 2.5, 0.04, False),  # too early
        (SEASONED, 2.5, 0.1, True),  # hopeless runs go at the first look
        (SEASONED, 2.2, 0.5, True),
        (SEASONED, 1.99, 0.3, False),  # a tie goes on…
        (SEASONED, 1.99, 0.9, False),  # …to the end
        (SEASONED, 1.9, 0.3, False),
        (SEASONED, 1.9, 0.95, False),
    ],
)
def test_ours_stops_exactly_the_hopeless(completed: list[float], final: float, fraction: float, stop: bool) -> None:
    verdict = make_judge(snapshot(completed))(progress(reports(final), fraction))
    assert verdict.stop is stop, verdict.reason


@pytest.mark.parametrize("rule", ["none", "naive", "ours"])
@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([7.0, 5.0, math.nan], "nan"),
        ([7.0, 5.0, math.inf], "inf"),
        ([7.0, 5.0] + [9.0] * 10, "diverged"),
        ([7.0] + [70.0] * 10, "exploded"),
        ([3.0] + [3.3] * 10, "diverged"),
    ],
)
def test_every_rule_stops_a_broken_run_at_once_even_the_first(rule: str, losses: list[float], word: str) -> None:
    run = tuple(Report(k, 3.0 * (k + 1), 0.01 * (k + 1), loss) for k, loss in enumerate(losses))
    verdict = make_judge(Snapshot(), rule)(Progress(run, run[-1].elapsed_s, 300.0))  # type: ignore[arg-type]
    assert verdict.stop
    assert word in verdict.reason


def test_a_warmup_spike_is_not_a_divergence() -> None:
    losses = [6.9, 8.6, 7.8, 7.2, 6.9, 6.0, 5.0, 4.0, 3.0]
    run = tuple(Report(k, 0.3 * (k + 1), 0.001 * (k + 1), loss) for k, loss in enumerate(losses))
    for n in range(1, len(run) + 1):
        assert not make_judge(Snapshot())(Progress(run[:n], run[n - 1].elapsed_s, 300.0)).stop


def test_the_verdict_carries_its_evidence_in_the_metrics_units() -> None:
    verdict = make_judge(snapshot(SEASONED))(progress(reports(2.2), 0.5))
    assert verdict.incumbent == pytest.approx(SCALE * 1.99)
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < SCALE * 2.2 < verdict.high
    assert verdict.low < verdict.forecast < verdict.high  # type: ignore[operator]
    assert verdict.p_improve == pytest.approx(0, abs=0.01)
    assert verdict.rule == "ours"
    assert verdict.fraction == 0.5


def test_too_few_runs_are_said_to_be_too_few() -> None:
    assert "too few" in make_judge(snapshot(SEEDLING[:2]))(progress(reports(3.0), 0.5)).reason


def test_earlier_campaigns_stand_in_for_the_first_runs() -> None:
    known = [dataclasses.replace(run, own=False) for run in snapshot(SEASONED).completed]
    seed = snapshot([2.02]).completed
    assert make_judge(Snapshot.build([*known, *seed], loss_scale=SCALE))(progress(reports(2.5), 0.5)).stop
    assert not make_judge(Snapshot.build(known, loss_scale=SCALE))(progress(reports(2.5), 0.5)).stop  # no incumbent yet


def test_the_learned_scale_judges_as_the_known_one() -> None:
    for final, stop in ((2.5, True), (1.9, False)):
        assert make_judge(snapshot(SEASONED, scale=None))(progress(reports(final), 0.5)).stop is stop


def test_a_metric_that_rises_is_judged_the_right_way_round() -> None:
    runs = [dataclasses.replace(run, final=10 - run.final) for run in snapshot(SEASONED).completed]
    judge = make_judge(Snapshot.build(runs, direction="higher"))
    assert judge(progress(reports(2.5), 0.5)).stop
    verdict = judge(progress(reports(1.9), 0.5))
    assert not verdict.stop
    assert verdict.forecast is not None
    assert verdict.forecast > 10 - SCALE * 1.99


@pytest.mark.parametrize("first", [1, 20, 100])
def test_a_clock_that_starts_late_or_a_handful_of_reports_is_judged_too(first: int) -> None:
    for n in (12, 300):
        bad, good = (tuple(r for r in reports(final, n=n) if r.fraction >= first / 300) for final in (2.5, 1.9))
        assert make_judge(snapshot(SEASONED))(progress(bad, 0.5)).stop
        assert not make_judge(snapshot(SEASONED))(progress(good, 0.5)).stop


def test_a_run_that_decays_later_has_more_of_its_drop_to_come() -> None:
    def decaying(run: tuple[Report, ...], start: float) -> tuple[Report, ...]:
        return tuple(dataclasses.replace(r, lr=0.01 * min(1.0, (1 - r.fraction) / (1 - start))) for r in run)

    runs = [
        PastRun.from_curve(Curve.from_reports(decaying(reports(final, seed=k), 0.3)), SCALE * final)
        for k, final in enumerate(SEASONED)
    ]
    judge = make_judge(Snapshot.build(runs, loss_scale=SCALE))
    early, late = (judge(progress(decaying(reports(2.04), start), 0.6)) for start in (0.3, 0.9))
    assert late.p_improve > early.p_improve  # type: ignore[operator]
    assert late.forecast < early.forecast  # type: ignore[operator]


@pytest.mark.parametrize("n", [60, 300, 3000])
def test_a_candidate_of_another_throughput_is_judged_alike(n: int) -> None:
    """Fewer, larger steps or many small ones: elapsed fraction counts, not steps."""
    for final, stop in ((2.3, True), (1.9, False)):
        assert make_judge(snapshot(SEASONED))(progress(reports(final, n=n), 0.5)).stop is stop


def test_who_has_fallen_more_of_late_has_less_left_to_fall() -> None:
    def stepped(early: float) -> tuple[Report, ...]:
        """Stand at 2.13 at 0.7, coming down from `early` since 0.3."""
        fall = [2.13 + early * max(0.0, (0.7 - r.fraction) / 0.4) for r in reports(2.0)]
        return tuple(dataclasses.replace(r, loss=y) for r, y in zip(reports(2.0), fall, strict=True))

    judge = make_judge(snapshot(SEASONED))
    flat, falling = (judge(progress(stepped(early), 0.7)) for early in (0.03, 0.15))
    assert falling.p_improve < flat.p_improve  # type: ignore[operator]
    assert falling.forecast > flat.forecast  # type: ignore[operator]


def test_one_odd_completed_run_does_not_blur_the_verdict() -> None:
    """An end that the curve did not show, as of a run that is evaluated in another way, counts little."""
    runs = list(snapshot(SEASONED).completed)
    odd = dataclasses.replace(runs[3], levels=tuple(x and x + 0.14 for x in runs[3].levels))
    plain, with_odd = (
        make_judge(Snapshot.build(completed, loss_scale=SCALE))(progress(reports(2.09), 0.6))
        for completed in (runs, [*runs[:3], odd, *runs[4:]])
    )
    assert plain.stop
    assert with_odd.stop, with_odd.reason


def test_no_report_yet_is_no_verdict() -> None:
    assert not make_judge(snapshot(SEASONED))(Progress((), 150.0, 300.0)).stop


def test_naive_cannot_see_the_drop_to_come() -> None:
    verdict = make_judge(snapshot(SEASONED), "naive")(progress(reports(1.97, noise=0.0), 0.4))
    assert verdict.stop  # a run that would have won
    assert not make_judge(snapshot(SEASONED), "ours")(progress(reports(1.97, noise=0.0), 0.4)).stop


def test_none_never_stops_a_sound_run_and_an_unknown_rule_is_named() -> None:
    assert not make_judge(snapshot(SEASONED), "none")(progress(reports(3.0), 0.9)).stop
    with pytest.raises(ValueError, match="'best'"):
        make_judge(Snapshot(), "best")  # type: ignore[arg-type]


def test_a_check_costs_less_than_20_ms_at_10000_reports() -> None:
    judge = make_judge(snapshot(SEASONED * 20))
    seen = progress(reports(2.0, n=12_500), 0.8)
    assert len(seen.reports) == 10_000
    spent_s = []
    for _ in range(7):
        start = time.process_time()
        judge(seen)
        spent_s.append(time.process_time() - start)
    assert min(spent_s) <= 0.020


def test_a_snapshot_survives_json_and_stays_small() -> None:
    import json

    runs = [
        PastRun(2.0 + k / 1000, (2.123456,) * 39 + (None,), "g", k % 2 == 0, 0.01, (0.123,) * 40) for k in range(5000)
    ]
    whole = Snapshot.build(runs, loss_scale=SCALE)
    text = json.dumps(whole.to_json(), allow_nan=False)
    assert Snapshot.from_json(json.loads(text)) == whole
    assert len(text) < 400_000
    assert whole.incumbent == 2.0
    assert min(run.final for run in whole.completed) == 2.0
    assert max(run.final for run in whole.completed if run.own) == 2.0 + 4998 / 1000  # the latest is kept, too


SAID = {
    "zeros": [0.0] * 100,
    "next to nothing": [1e-200] * 100,
    "two, then next to nothing": [2.0] + [1e-20] * 99,
    "now above, now below zero": [1.0, -1.0] * 50,
    "the largest there is": [1e6] * 100,
    "the largest, then zeros": [1e6] + [0.0] * 99,
}


def saying(losses: list[float]) -> tuple[Report, ...]:
    return tuple(Report(k, 3.0 * (k + 1), 0.01 * (k + 1), loss) for k, loss in enumerate(losses))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("losses", SAID.values(), ids=SAID)
def test_whatever_a_candidate_reports_can_be_kept_and_judged(losses: list[float]) -> None:
    """One that raised would end its campaign, and again at every resume, as completed runs are read anew."""
    past = PastRun.from_curve(Curve.from_reports(saying(losses)), SCALE * 1.98)
    assert all(math.isfinite(x) for x in (past.blur, *past.levels))
    after = Snapshot.build([*snapshot(SEASONED).completed, past], loss_scale=SCALE)
    for state, run in ((snapshot(SEASONED), saying(losses)), (after, reports(2.0)), (after, saying(losses))):
        verdict = make_judge(state)(progress(run, 0.5))
        assert verdict.p_improve is not None, verdict.reason
        assert math.isfinite(verdict.p_improve)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [1e200, 1e300])
def test_a_curve_that_cannot_be_read_stops_nobody(loss: float) -> None:
    verdict = make_judge(snapshot(SEASONED))(progress(saying([loss] * 100), 0.5))
    assert (verdict.stop, verdict.reason) == (False, "the curve cannot be read")


def test_a_run_that_is_drawn_for_the_audit_is_not_stopped_and_the_verdict_says_that_it_would_have_been() -> None:
    plain, audited = snapshot(SEASONED), dataclasses.replace(snapshot(SEASONED), audited=True)
    seen = progress(reports(2.5), 0.5)
    would, verdict = make_judge(plain)(seen), make_judge(audited)(seen)
    assert (would.stop, would.rule) == (True, "ours")
    assert (verdict.stop, verdict.rule) == (False, AUDIT_RULE)
    assert verdict.p_improve == would.p_improve
    assert make_judge(audited)(progress(reports(1.9), 0.5)).rule == "ours", "and where it would not, nothing is noted"


def test_the_audit_does_not_keep_a_broken_run_alive() -> None:
    run = tuple(Report(k, 3.0 * (k + 1), 0.01 * (k + 1), loss) for k, loss in enumerate([7.0, 5.0, math.nan]))
    audited = dataclasses.replace(snapshot(SEASONED), audited=True)
    assert make_judge(audited)(Progress(run, run[-1].elapsed_s, 300.0)).stop


CAUTIOUS = Verdict(False, "too few", "ours", 0.5)
LET_LIVE = Verdict(False, "not under the level", "ours", 0.5, forecast=2.0, p_improve=0.5)
NAIVE = Verdict(False, "not worse", "naive", 0.5, forecast=2.0)
AUDITED = Verdict(False, "under the level", AUDIT_RULE, 0.5, forecast=2.1, p_improve=0.01)


@pytest.mark.parametrize(
    ("verdicts", "share", "judged", "runs"),
    [
        ([], 0.0, False, 1.0),  # no rule at all
        ([CAUTIOUS], 0.0, False, 1.0),  # the first few
        ([CAUTIOUS, LET_LIVE], 0.1, True, 1.0),  # it would have lived anyway…
        ([CAUTIOUS, LET_LIVE, AUDITED, LET_LIVE], 0.1, True, 10.0),  # …and this one not: nine like it were stopped
        ([LET_LIVE, AUDITED], 1.0, True, 1.0),  # nothing is stopped
        ([CAUTIOUS, LET_LIVE], 0.0, True, 1.0),  # a survivor; those that were stopped left no trace
        ([NAIVE], 0.0, True, 1.0),
    ],
)
def test_a_completed_run_stands_for_those_like_it_that_were_stopped(
    verdicts: list[Verdict], share: float, judged: bool, runs: float
) -> None:
    assert (is_judged(verdicts), stands_for(verdicts, share)) == (judged, runs)


def test_what_a_run_stands_for_survives_json() -> None:
    first, *others = snapshot(SEEDLING).completed
    known = Snapshot((dataclasses.replace(first, stands_for=10.0, sampled=False), *others), audited=True)
    assert Snapshot.from_json(known.to_json()) == known


def test_a_snapshot_of_an_earlier_version_is_read() -> None:
    data = snapshot(SEEDLING).to_json()
    assert not {"stands_for", "sampled"} & set(data["completed"][0])
    del data["audited"]
    assert Snapshot.from_json(data) == snapshot(SEEDLING)


def test_survivors_alone_do_not_move_the_level_of_the_test() -> None:
    known = snapshot(SEASONED)
    selected = [dataclasses.replace(run, sampled=False) for run in known.completed]
    sample, survivors = Forecaster(known), Forecaster(dataclasses.replace(known, completed=tuple(selected)))
    assert sample.look(0.5).tie.mean_P == pytest.approx(survivors.look(0.5).tie.mean_P)
    assert sample.strictness != survivors.strictness


def test_a_run_that_only_the_audit_let_live_weighs_in_the_tie_as_all_that_were_stopped_like_it() -> None:
    known = snapshot(SEASONED)
    last = dataclasses.replace(known.completed[5], stands_for=3.0)
    thrice = dataclasses.replace(known, completed=(*known.completed[:5], last, *known.completed[6:]))
    repeated = dataclasses.replace(known, completed=(*known.completed, known.completed[5], known.completed[5]))
    weighed, counted = Forecaster(thrice).look(0.5).tie, Forecaster(repeated).look(0.5).tie
    assert weighed.mean_P == pytest.approx(counted.mean_P, rel=0.05, abs=1e-3)
