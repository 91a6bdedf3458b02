"""The small parts of a campaign: packed rollouts, costs, display."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from rich.console import Console

from arl_core.config import load_config
from arl_core.patch import Patch
from arl_core.policy.rollout import EditBlock, Rollout
from arl_core.records import Experiment
from bench.overhead import overhead
from flows.costs import Costs
from flows.display import LiveDisplay, PlainDisplay, experiments_table, figure
from flows.gauge import clock, gauge, sparkline
from flows.unsettled import Landed, Proposal, pack, unpack
from frozen_env.contract import Ending, Report, RunResult, Score, Status, Verdict

ROOT = Path(__file__).resolve().parents[2]


def experiment(index: int = 1, status: Status = Status.KEPT, **fields) -> Experiment:
    return Experiment("c", index, status, metric="val_bpb", **fields)


def test_nothing_unsettled_packs_to_nothing():
    assert pack([]) == b""
    assert unpack(b"") == ([], [])


def test_what_waits_for_an_update_or_a_second_look_comes_back_as_it_was():
    rollout = Rollout.foreign("prompt", "completion", 7, (EditBlock("a\n", "b\n"),))
    edit = Patch("b\n", "diff", "a to b", ("stripped a fence",))
    costs = Costs(None)
    costs.parts = {"propose": 2.5, "run": 300.0}
    report = Report(step=1, elapsed_s=0.5, fraction=0.1, loss=6.9)
    score = Score("val_bpb", 1.25, "lower", 1, 3, 0.1, 0.1, 0.0)
    result = RunResult(Ending.FINISHED, score=score, reports=(report,), extra={"performance": {"device": "GPU"}})
    landed = Landed(Proposal(9, 4, 1.5, rollout, edit, 3, costs), result)
    ((waiting, reward),), (again,) = unpack(pack([(rollout, -0.5)], [landed]))
    assert (waiting.completion, waiting.seed, reward) == ("completion", 7, -0.5)
    assert again.result == result
    told = again.proposal
    assert (told.index, told.parent_index, told.incumbent_value, told.policy_step) == (9, 4, 1.5, 3)
    assert told.edit == edit
    assert told.rollout.blocks == rollout.blocks
    assert told.costs.parts == costs.parts


def test_the_hours_between_an_interruption_and_the_next_start_are_nobodys_costs():
    costs = Costs.resumed({"run": 300.0, "iteration": 310.0})
    told = costs.finished()
    assert told["run"] == 300.0
    assert 310.0 <= told["iteration"] < 330.0


def test_costs_add_up_and_tell_what_came_after_the_last_commit():
    first = Costs(None)
    with first.timed("prompt"), first.timed("patch"):
        pass
    told = first.finished()
    assert told["iteration"] >= told["prompt"] >= told["patch"] >= 0
    with first.timed("commit"):
        pass
    second = Costs(first)
    assert second.parts["before/commit"] == first.parts["commit"]
    assert second.parts["before/between"] >= second.parts["before/commit"]


def test_overhead_leaves_out_policy_startup_training_and_scoring():
    costs = {
        "prompt": 0.1,
        "propose": 5.0,
        "startup": 0.2,
        "training": 1.0,
        "scoring": 0.3,
        "run": 1.6,
        "iteration": 6.8,
    }
    costs |= {"before/between": 0.25, "before/commit": 0.05, "before/track": 0.15}
    figures = overhead([experiment(costs=costs)])
    # 6.8 + 0.25 of wall clock, less what is not the loop's
    assert figures["seconds_per_iteration"]["median"] == pytest.approx(6.8 + 0.25 - 5.0 - 0.2 - 1.0 - 0.3)
    assert figures["parts"]["host_and_messages"] == pytest.approx(0.1)
    assert figures["parts"]["propose (not counted)"] == 5.0


def test_events_that_wait_for_prefects_server_are_bounded():
    assert get_current_settings().events.worker_max_queue_size == 500


def test_overhead_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no experiments"):
        overhead([])


def test_a_figure_says_measured_forecast_or_why_not():
    assert figure(experiment(value=1.5)) == "val_bpb 1.5000"
    assert figure(experiment(status=Status.STOPPED_EARLY, estimate=2.5)) == "forecast 2.5000"
    assert figure(experiment(status=Status.CRASHED, reason="no\nway")) == "no way"


def test_a_sparkline_falls_with_the_loss():
    line = sparkline([float(x) for x in range(100, 0, -1)], width=8)
    assert line == "█▇▆▅▄▃▂▁"
    assert sparkline([1.0]) == "▁"


def test_a_gauge_shows_the_interval_and_where_the_incumbent_stands():
    assert gauge(1.0, 1.5, 2.0, None, width=11) == "▒▒▒▒▒●▒▒▒▒▒"
    assert gauge(1.5, 1.75, 2.0, 1.0, width=11) == "┃────▒▒▒●▒▒"[:11]
    assert gauge(1.0, 1.0, 1.0, 1.0, width=3) == "┃──"
    assert gauge(float("nan"), 1.0, 2.0, None) == ""


def test_the_curve_of_a_run_that_blew_up_is_still_drawn():
    assert sparkline([3.0, float("nan"), float("inf"), 1.0]) == "█▁"
    assert sparkline([float("nan")]) == ""


def test_times_are_said_as_a_person_says_them():
    assert [clock(s) for s in (-1, 42, 1000, 9000)] == ["0 s", "42 s", "17 min", "2.5 h"]


def test_text_of_a_candidate_is_never_markup():
    console = Console(file=io.StringIO(), width=120)
    console.print(experiments_table([experiment(summary="[red]danger[/red] \x1b[2J")]))
    shown = console.file.getvalue()
    assert "[red]danger[/red]" in shown
    assert "\x1b[2J" not in shown


def test_plain_lines_tell_the_run():
    lines: list[str] = []
    display = PlainDisplay(load_config("embedded"), lines.append)
    display.begin(1, 8)
    display.candidate("DEPTH: 4 → 5")
    display.event({"event": "started", "startup_s": 0.2})
    display.event({"event": "report", "report": [1, 0.1, 0.01, 6.9, None]})
    display.event({"event": "report", "report": [2, 0.2, 0.02, 6.8, None]})
    display.event({"event": "verdict", "verdict": Verdict(True, "hopeless")})
    display.settled(experiment(value=1.5), experiment(value=1.5))
    assert [line.strip() for line in lines] == [
        "experiment 1 of 8",
        "trying: DEPTH: 4 → 5",
        "training (start-up 0.2 s)",
        "1% step 1 loss 6.9000",
        "stopped: hopeless",
        "kept: val_bpb 1.5000; best 1.5000, one run (#1)",
    ]


def shown(display: LiveDisplay) -> str:
    display.console.print(display)
    return display.console.file.getvalue()


def live() -> LiveDisplay:
    return LiveDisplay("c", load_config("embedded"), Console(file=io.StringIO(), width=160, force_terminal=True))


def test_candidates_side_by_side_have_a_line_each_until_they_end():
    display = live()
    for index, loss in ((4, 3.5), (5, 4.5)):
        display.event({"event": "begun", "index": index, "summary": f"DEPTH: 2 → {index}"})
        display.event({"event": "started", "index": index, "startup_s": 0.2})
        display.event({"event": "report", "index": index, "report": [9, 5.0, 0.25, loss, None]})
    verdict = Verdict(False, "", forecast=3.1, low=3.0, high=3.2)
    display.event({"event": "verdict", "index": 4, "verdict": verdict})
    lines = shown(display).splitlines()
    (four,), (five,) = ([line for line in lines if f"#{index} training" in line] for index in (4, 5))
    for words in ("25%", "loss 3.5000", "forecast 3.1000 [3.0000, 3.2000]", "15 s left", "DEPTH: 2 → 4"):
        assert words in four
    assert "loss 4.5000" in five
    display.event({"event": "ended", "index": 4})
    display.console.file = io.StringIO()
    assert "#4" not in shown(display)


def test_candidates_on_nodes_are_shown_by_their_hearts():
    display = live()
    display.event({"event": "beat", "index": 4, "phase": "starting"})
    display.event({"event": "beat", "index": 4, "phase": "training", "fraction": 0.5, "loss": 3.5})
    display.event({"event": "beat", "phase": "training", "fraction": 0.75, "loss": 2.5})  # one after the other
    text = shown(display)
    assert "#4 training" in text
    assert "loss 3.5000" in text
    assert "10 s left" in text
    assert "training: ...  (5 s left)" in text
    assert "loss 2.5000" in text
    display.event({"event": "beat", "index": 4, "phase": "starting"})  # its node died, another took it
    display.console.file = io.StringIO()
    assert "loss 3.5000" not in shown(display)


def test_a_resumed_campaign_is_shown_with_its_past():
    display = live()
    past = [experiment(index, Status.DISCARDED, summary=f"edit {index}") for index in range(20)]
    display.resumed(past, experiment(3, value=1.5))
    text = shown(display)
    assert "best 1.5000, one run (#3)   discarded 20" in text
    assert "edit 19" in text
    assert "edit 1 " not in text
    display.begin(20, 29)
    assert "about" not in shown(display), "the pace of this start is not known yet"


def test_a_log_tells_where_a_resumed_campaign_stands_and_how_candidates_side_by_side_end():
    lines: list[str] = []
    display = PlainDisplay(load_config("embedded"), lines.append)
    display.resumed([experiment(0), experiment(1)], experiment(0, value=1.5))
    display.event({"event": "started", "index": 2, "startup_s": 0.2})
    display.resumed([], None)
    assert lines == ["going on after 2 experiments; best 1.5000, one run (#0)"]


def test_the_live_panel_shows_the_run():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    display = LiveDisplay("campaign-1", load_config("embedded"), console)
    display.begin(2, 8)
    display.candidate("WIDTH: 64 → 96")
    display.event({"event": "started", "startup_s": 0.2})
    for step in range(20):
        display.event({"event": "report", "report": [step, step / 10, step / 200, 7 - step / 10, None]})
    display.event({"event": "verdict", "verdict": Verdict(False, "", forecast=2.1, low=2.0, high=2.2, incumbent=1.5)})
    display.settled(experiment(value=1.5), experiment(value=1.5))
    console.print(display)
    shown = console.file.getvalue()
    for words in (
        "campaign-1",
        "experiment 2 of 8",
        "WIDTH: 64 → 96",
        "forecast 2.1000 [2.0000, 2.2000]",
        "best 1.5000, one run (#1)",
        "┃ incumbent 1.5000",
        "left",
    ):
        assert words in shown


def test_a_campaign_whose_worker_was_killed_goes_on_without_its_pipe():
    code = "import sys\nfrom flows.display import print_line\nsys.stdin.readline()\nfor _ in range(3): print_line('x' * 9999)\n"
    command = [sys.executable, "-c", code + "print('not heard'); sys.stderr.write('went on')"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("go\n", timeout=120)
    assert errors.endswith("went on")
    assert process.returncode == 0
