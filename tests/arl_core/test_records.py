"""Records survive JSON, and a source is known by what it does."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl_core.records import Campaign, Experiment, one_line, source_hash
from frozen_env.contract import Cause, Report, Status, Verdict

numbers = st.floats(allow_nan=False) | st.none()
texts = st.text(max_size=30)

experiments = st.builds(
    Experiment,
    campaign_id=texts,
    index=st.integers(0, 10_000),
    status=st.sampled_from(Status),
    cause=st.sampled_from(Cause),
    reason=texts,
    summary=texts,
    value=numbers,
    estimate=numbers,
    reward=numbers,
    direction=st.sampled_from(["lower", "higher"]),
    reward_terms=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
    reports=st.lists(
        st.builds(Report, st.integers(0, 9), numbers.filter(bool), st.just(0.5), st.floats(allow_nan=False), numbers),
        max_size=3,
    ).map(tuple),
    verdicts=st.lists(
        st.builds(Verdict, stop=st.booleans(), reason=texts, forecast=numbers, p_improve=numbers), max_size=2
    ).map(tuple),
    prompt=texts,
    completion=texts,
    repairs=st.lists(texts, max_size=2).map(tuple),
    extra=st.dictionaries(texts, st.integers() | texts, max_size=2),
)


@given(experiments)
def test_an_experiment_comes_back_from_strict_json_as_it_was(experiment: Experiment) -> None:
    text = json.dumps(experiment.to_json(), allow_nan=False)
    assert Experiment.from_json(json.loads(text)) == experiment


def test_a_loss_that_is_not_a_number_survives_json() -> None:
    reports = (Report(1, 0.1, 0.1, math.nan), Report(2, 0.2, 0.2, math.inf))
    experiment = Experiment("c", 1, Status.CRASHED, reports=reports)
    back = Experiment.from_json(json.loads(json.dumps(experiment.to_json(), allow_nan=False)))
    assert math.isnan(back.reports[0].loss)
    assert back.reports[1].loss == math.inf


def test_a_campaign_comes_back_from_json_as_it_was() -> None:
    campaign = Campaign("c", "embedded", {"policy": {"lora_r": 8}}, "digest", 3, "2026-11-23T00:00:00+00:00", "text")
    assert Campaign.from_json(json.loads(json.dumps(campaign.to_json()))) == campaign


@pytest.mark.parametrize(
    ("value", "confirmed_value", "confirmations", "figure"),
    [
        (1.5, None, 0, 1.5),
        (1.5, 1.6, 4, 1.6),
        (1.5, None, 4, 1.5),
        (None, None, 0, None),
        (math.nan, None, 0, None),
        (1.5, math.inf, 2, None),
    ],
)
def test_the_mean_over_fresh_seeds_counts_before_the_selecting_run(
    value: float | None, confirmed_value: float | None, confirmations: int, figure: float | None
) -> None:
    one = Experiment(
        "c", 0, Status.KEPT, value=value, confirmed_value=confirmed_value, confirmations=confirmations, estimate=9.0
    )
    assert one.figure == figure
    assert one.repeated is (confirmed_value is not None)


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="won"):
        Experiment("c", 1, "won")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        Experiment("c", -1, Status.KEPT)
    with pytest.raises(ValueError, match="up"):
        Experiment("c", 1, Status.KEPT, direction="up")  # type: ignore[arg-type]


SOURCE = '''"""Train."""
LR = 2e-3  # peak


def f(x):
    """Double."""
    return 2 * x
'''


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.replace("  # peak", ""),
        SOURCE.replace("2e-3", "0.002"),
        SOURCE.replace('"""Double."""', '"""Return twice x."""'),
        SOURCE.replace("\n\n\n", "\n# a comment\n"),
        SOURCE.replace("2 * x", "(2   * x)"),
    ],
    ids=["no comment", "number spelled otherwise", "docstring", "blank lines", "parentheses"],
)
def test_spelling_does_not_make_a_source_new(other: str) -> None:
    assert source_hash(other) == source_hash(SOURCE)


@pytest.mark.parametrize("other", [SOURCE.replace("2e-3", "3e-3"), SOURCE.replace("2 * x", "x * 2"), "", "f(", "f(("])
def test_any_other_change_does(other: str) -> None:
    assert source_hash(other) != source_hash(SOURCE)


def test_a_source_that_does_not_parse_is_known_by_its_text() -> None:
    assert source_hash("f(") == source_hash("f(") != source_hash("f( ")
    for hostile in ("\0", "(" * 10_000, "\ud800", "-" * 100_000 + "1", "x = " + "9" * 10_000, "'\\d'"):
        assert len(source_hash(hostile)) == 64


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb\u200b", "a\\u202eb\\u200b"),
        ("<|im_end|>", "< |im_end| >"),
        ("<<<<<<< SEARCH ======= >>>>>>> REPLACE", "<<< SEARCH === >>> REPLACE"),
        ("lr 2e-3 → 3e-3, a == b", "lr 2e-3 → 3e-3, a == b"),
        ("", ""),
    ],
)
def test_untrusted_text_becomes_one_harmless_line(text: str, line: str) -> None:
    assert one_line(text) == line


@given(st.text(), st.integers(1, 50))
def test_one_line_is_printable_and_no_longer_than_asked(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.isprintable() or " " in line or "\u3000" in line
    assert "\n" not in line
