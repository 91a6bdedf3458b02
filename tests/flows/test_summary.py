"""The closing summary says what was confirmed and what was not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from arl_core.memory import Memory
from arl_core.records import Campaign, Experiment, State
from flows.summary import print_summary
from frozen_env.contract import Status


def told(promotion: int = 0, runs: int = 3) -> dict[str, object]:
    return {"confirmation": {"noise_sd": 0.02, "runs": runs} | ({"promotion": promotion} if promotion else {})}


def one(index: int, status: Status, value: float, mean: float | None = None, **fields: object) -> Experiment:
    known = {
        "metric": "val_bpb",
        "source": f"X = {index}\n",
        "confirmed_value": mean,
        "confirmations": 4 if mean else 0,
    }
    return Experiment("c", index, status, value=value, **(known | fields))  # type: ignore[arg-type]


BASELINE = one(0, Status.KEPT, 1.64, 1.65, extra=told(1))
LUCKY = one(
    1, Status.DISCARDED, 1.58, 1.66, extra=told(), reason="beat the incumbent by 0.0700 on one run; not confirmed"
)
BETTER = one(2, Status.KEPT, 1.60, 1.61, extra=told(2, runs=4))


def summary(folder: Path, *experiments: Experiment, **config: object) -> tuple[str, dict[str, object]]:
    memory = Memory(folder / "memory.duckdb")
    memory.create_campaign(
        Campaign("c", "embedded", config, "digest", 0, "2026-11-24T00:00:00+00:00", "language_model")
    )
    for experiment in experiments:
        memory.commit_iteration(experiment, State())
    console = Console(file=io.StringIO(), width=180)
    found = print_summary(memory, "c", folder, console)
    return console.file.getvalue(), found


def test_the_best_is_told_with_its_mean_its_error_and_its_runs(tmp_path: Path):
    shown, found = summary(tmp_path, BASELINE, LUCKY, BETTER)
    assert "best: val_bpb 1.6100 ± 0.0100 ×4 confirmed, by experiment 2; experiment 0 has 1.6500 ± 0.0100 ×4" in shown
    assert "re-runs: 10 beside 3 first runs" in shown
    assert (found["best_index"], found["best_value"], found["best_confirmed"]) == (2, 1.60, 1.61)
    assert found["reruns"] == 10
    assert (tmp_path / "best_so_far.png").stat().st_size > 1000


def test_the_table_has_the_first_run_and_the_mean_side_by_side(tmp_path: Path):
    shown, _ = summary(tmp_path, BASELINE, LUCKY, BETTER)
    row = next(line for line in shown.splitlines() if line.startswith("1"))
    assert "1.5800" in row
    assert "1.6600 ± 0.0100 ×4" in row
    assert "discarded" in row


def test_a_lucky_run_does_not_become_the_best(tmp_path: Path):
    shown, found = summary(tmp_path, BASELINE, LUCKY)
    assert "the untouched target: nothing was confirmed to be better" in shown
    assert found["best_index"] == 0


def test_the_line_of_the_best_so_far_ends_at_the_incumbent_where_a_worse_one_was_kept_later(
    tmp_path: Path, monkeypatch
):
    """Side by side without confirmation, an experiment may be kept against the incumbent of its own proposal."""
    drawn: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    monkeypatch.setattr("matplotlib.axes.Axes.step", lambda _axes, x, y, **_: drawn.append((x, y)))
    summary(tmp_path, one(0, Status.KEPT, 1.64), one(1, Status.KEPT, 1.58), one(2, Status.KEPT, 1.60))
    assert drawn == [((0, 1, 2), (1.64, 1.58, 1.58))]


def test_without_confirmation_the_summary_says_that_nothing_is_confirmed(tmp_path: Path):
    single = [one(0, Status.KEPT, 1.64), one(1, Status.KEPT, 1.60)]
    shown, _ = summary(tmp_path, *single)
    assert "best: val_bpb 1.6000 by experiment 1, experiment 0 had 1.6400 (one run each, not confirmed)" in shown
    assert "re-runs:" not in shown


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("http://tracking:5000", "MLflow UI:  http://tracking:5000\n"),
        ("", "MLflow UI:  mlflow ui --backend-store-uri sqlite:///"),
    ],
    ids=["a server", "a database of one's own"],
)
def test_the_summary_says_where_mlflows_page_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, line: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert line in summary(tmp_path, BASELINE)[0]


def test_a_campaign_that_was_not_tracked_has_no_page_in_mlflow(tmp_path: Path):
    assert "MLflow" not in summary(tmp_path, BASELINE, tracking=False)[0]


@pytest.mark.parametrize("experiments", [(BASELINE,), (BASELINE, BETTER)])
def test_the_plot_is_drawn_for_any_campaign(tmp_path: Path, experiments):
    summary(tmp_path, *experiments)
    assert (tmp_path / "best_so_far.png").read_bytes().startswith(b"\x89PNG")
