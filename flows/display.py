"""What a person sees while a campaign runs: a live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from arl_core.config import CampaignConfig
from arl_core.records import Experiment, confirmed_words, one_line
from flows.gauge import WIDTH, clock, gauge, sparkline
from frozen_env.contract import Status, Verdict

SHOWN_ROWS = 12
BESIDE_WIDTH = 16  # cells of a loss curve where candidates have a line each
FAR_OFF = 100_000  # experiments: a campaign without an end has no time left to tell
POLICY_SHOWN = ("reward_mean", "entropy", "approx_kl", "kl_ref", "policy_loss", "value_loss", "explained_variance")
COLOURS = {
    Status.KEPT: "green",
    Status.DISCARDED: "white",
    Status.STOPPED_EARLY: "yellow",
    Status.CRASHED: "red",
    Status.TIMED_OUT: "red",
    Status.REJECTED: "magenta",
    Status.DUPLICATE: "magenta",
}


class Display(Protocol):
    """Follows a campaign. Never decides anything.

    Events are those of a host, or a node's "beat" (fraction, loss, phase). Of candidates side by side each names its "index",
    from "begun" (summary) to "ended"; they come from several threads.
    """

    def resumed(self, past: Sequence[Experiment], best: Experiment | None) -> None: ...
    def begin(self, index: int, total: int) -> None: ...
    def phase(self, text: str) -> None: ...
    def candidate(self, summary: str) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...
    def settled(self, experiment: Experiment, best: Experiment | None) -> None: ...
    def updated(self, metrics: dict[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_display(campaign_id: str, config: CampaignConfig, console: Console | None = None) -> Display:
    console = console or Console()
    return LiveDisplay(campaign_id, config, console) if console.is_terminal else PlainDisplay(config)


def print_line(line: str) -> None:
    """Print a line at once. A reader that is gone (a worker that was killed has the other end) must not end a campaign."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good: flushing the old one at exit fails)


class PlainDisplay:
    """One line per event worth a line; for logs, pipes and workers."""

    def __init__(self, config: CampaignConfig, write: Callable[[str], None] | None = None) -> None:
        self._check_every_s = config.environment.check_every_s
        self._write = write or print_line
        self._next_s = 0.0

    def resumed(self, past: Sequence[Experiment], best: Experiment | None) -> None:
        if best is not None:
            self._write(f"going on after {len(past)} experiments; best {best_figure(best)}")

    def begin(self, index: int, total: int) -> None:
        self._next_s = 0.0
        self._write(f"experiment {index} of {total}")

    def phase(self, text: str) -> None:
        self._write(f"  {text}")

    def candidate(self, summary: str) -> None:
        self._write(f"  trying: {summary}")

    def event(self, event: dict[str, Any]) -> None:
        if "index" in event:  # of candidates side by side a log tells how they end
            return
        if event["event"] == "started":
            self._write(f"  training (start-up {event['startup_s']:.1f} s)")
        elif event["event"] == "report":
            step, elapsed_s, fraction, loss, _ = event["report"]
            if elapsed_s >= self._next_s:
                self._next_s = elapsed_s + self._check_every_s
                self._write(f"    {fraction:4.0%} step {step} loss {loss:.4f}")
        elif event["event"] == "verdict":
            verdict: Verdict = event["verdict"]
            if verdict.stop:
                self._write(f"    stopped: {verdict.reason}")
        elif event["event"] == "scoring":
            self._write("  scoring")

    def settled(self, experiment: Experiment, best: Experiment | None) -> None:
        best_words = f"; best {best_figure(best)}" if best else ""
        self._write(f"  {experiment.status.value}: {figure(experiment)}{best_words}")

    def updated(self, metrics: dict[str, float]) -> None:
        shown = ", ".join(
            f"{key} {metrics[key]:.3g}" for key in ("policy_loss", "value_loss", "approx_kl") if key in metrics
        )
        self._write(f"  policy updated: {shown}")

    def say(self, text: str) -> None:
        self._write(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@dataclass
class _Run:
    """A candidate in flight, as its events tell."""

    summary: str = ""
    phase: str = "starting"
    fraction: float = 0.0
    losses: list[float] = field(default_factory=list)
    verdict: Verdict | None = None

    def hear(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "begun":
                self.summary = event["summary"]
            case "started":
                self.phase, self.fraction, self.losses, self.verdict = "training", 0.0, [], None
            case "scoring":
                self.phase = "scoring"
            case "report":
                _, _, self.fraction, loss, _ = event["report"]
                self.losses.append(loss)
            case "verdict":
                self.verdict = event["verdict"]
            case "beat":
                self.phase = event["phase"]
                if "loss" in event:
                    self.fraction = event["fraction"]
                    self.losses.append(event["loss"])
                else:  # on its way to the first report, perhaps on a second node
                    self.fraction, self.losses = 0.0, []

    def left(self, budget_s: float) -> str:
        return f"{(1.0 - self.fraction) * budget_s:.0f} s left"

    def line(self, index: int, budget_s: float) -> Text:
        """All of it in one line, for candidates side by side."""
        words = [f"#{index} {self.phase}"]
        if self.losses:
            words.append(f"{self.fraction:4.0%} {sparkline(self.losses, BESIDE_WIDTH)} loss {self.losses[-1]:.4f}")
        if self.verdict is not None and self.verdict.forecast is not None:
            words.append(_forecast_words(self.verdict))
        if self.phase == "training":
            words.append(self.left(budget_s))
        return Text("  ".join([*words, one_line(self.summary, 76)]), no_wrap=True, overflow="ellipsis")


class LiveDisplay:
    """A panel that redraws in place: the candidates in flight above, the latest experiments below."""

    def __init__(self, campaign_id: str, config: CampaignConfig, console: Console) -> None:
        self.console = console
        self._campaign_id = campaign_id
        self._config = config
        self._live = Live(self, console=console, refresh_per_second=4)
        self._began_s = time.monotonic()
        self._index = self._total = 0
        self._phase = "starting"
        self._phase_since_s = time.monotonic()
        self._run = _Run()
        self._beside: dict[int, _Run] = {}  # candidates side by side, by experiment
        self._rows: list[Experiment] = []
        self._counts: Counter[Status] = Counter()
        self._done = 0  # experiments of this start
        self._best: Experiment | None = None
        self._policy: dict[str, float] = {}

    def resumed(self, past: Sequence[Experiment], best: Experiment | None) -> None:
        self._rows, self._best = list(past[-SHOWN_ROWS:]), best
        self._counts = Counter(one.status for one in past)

    def begin(self, index: int, total: int) -> None:
        self._index, self._total, self._run = index, total, _Run()

    def phase(self, text: str) -> None:
        self._phase, self._phase_since_s = text, time.monotonic()

    def candidate(self, summary: str) -> None:
        self._run.summary = summary

    def event(self, event: dict[str, Any]) -> None:
        index = event.get("index")
        if index is None:
            self._run.hear(event)
            if event["event"] in ("started", "scoring", "beat") and self._phase != self._run.phase:
                self.phase(self._run.phase)
        elif event["event"] == "ended":
            self._beside.pop(index, None)
        else:
            self._beside.setdefault(index, _Run()).hear(event)

    def settled(self, experiment: Experiment, best: Experiment | None) -> None:
        self._rows = [*self._rows, experiment][-SHOWN_ROWS:]
        self._counts[experiment.status] += 1
        self._done += 1
        self._best = best

    def updated(self, metrics: dict[str, float]) -> None:
        self._policy = metrics

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def __rich__(self) -> RenderableType:
        best = best_figure(self._best) if self._best else "none yet"
        counts = "  ".join(f"{status.value} {count}" for status, count in self._counts.items())
        head = Text(f"best {best}   {counts}")
        run, budget_s = self._run, self._config.environment.budget_s
        filled = round(run.fraction * WIDTH)
        bar = Text("━" * filled + "╌" * (WIDTH - filled))
        since_s = time.monotonic() - self._phase_since_s
        timing = run.left(budget_s) if self._phase == "training" else f"{since_s:.0f} s"
        parts: list[RenderableType] = [head, Text(f"{self._phase}: {run.summary or '...'}  ({timing})")]
        if run.losses:
            parts += [bar, Text(f"{sparkline(run.losses)}  loss {run.losses[-1]:.4f}")]
            parts += _forecast_lines(run.verdict)
        parts += [one.line(index, budget_s) for index, one in sorted(self._beside.copy().items())]
        if self._policy:
            known = [key for key in POLICY_SHOWN if key in self._policy]
            shown = "  ".join(f"{key} {self._policy[key]:.3g}" for key in known)
            parts.append(Text(f"policy  {shown}", style="dim"))
        if self._rows:
            parts.append(experiments_table(self._rows))
        title = f"{escape(self._campaign_id)}   experiment {self._index} of {self._total}{self._time_left()}"
        return Panel(Group(*parts), title=title)

    def _time_left(self) -> str:
        """The rest at the mean pace of this start so far; nothing before the first experiment has settled."""
        left = self._total - self._index + 1
        if not self._done or left > FAR_OFF:
            return ""
        return f"   about {clock((time.monotonic() - self._began_s) / self._done * left)} left"

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def best_figure(best: Experiment) -> str:
    """The incumbent's number and whose it is: its mean over fresh seeds where there is one, else its single run."""
    value = confirmed_words(best) or (f"{best.value:.4f}, one run" if best.value is not None else "without a value")
    return f"{value} (#{best.index})"


def figure(experiment: Experiment) -> str:
    """The number that stands for an experiment, or why it has none."""
    if experiment.value is not None:
        again = confirmed_words(experiment)
        return f"{experiment.metric} {experiment.value:.4f}" + (f", re-run {again}" if again else "")
    if experiment.estimate is not None:
        return f"forecast {experiment.estimate:.4f}"
    return one_line(experiment.reason, 90) or "no value"


def experiments_table(experiments: list[Experiment]) -> Table:
    """A table of experiments, oldest first; text that a candidate or a policy wrote is shown as text, never as markup.

    value is one run on the campaign's seed, re-run the mean over fresh seeds ± one standard error and their number.
    """
    table = Table(box=None, pad_edge=False, expand=False)
    for name, justify in (
        ("#", "right"),
        ("status", "left"),
        ("value", "left"),
        ("re-run", "left"),
        ("reward", "right"),
        ("s", "right"),
        ("edit", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "edit")  # type: ignore[arg-type]
    for one in experiments:
        value = (
            f"{one.value:.4f}" if one.value is not None else f"~{one.estimate:.4f}" if one.estimate is not None else "-"
        )
        reward = f"{one.reward:+.2f}" if one.reward is not None else "-"
        words = one.summary + (f" [{one_line(one.reason, 76)}]" if one.reason else "")
        seconds = f"{one.costs.get('training', 0.0):.0f}"
        colour = COLOURS[one.status]
        table.add_row(
            str(one.index),
            Text(one.status.value, style=colour),
            value,
            confirmed_words(one) or "-",
            reward,
            seconds,
            Text(one_line(words, 120)),
        )
    return table


def _forecast_lines(verdict: Verdict | None) -> list[RenderableType]:
    """The forecast's interval as a line against the incumbent (┃), and in numbers."""
    if verdict is None or verdict.forecast is None:
        return []
    lines: list[RenderableType] = []
    if verdict.low is not None and verdict.high is not None:
        drawn = gauge(verdict.low, verdict.forecast, verdict.high, verdict.incumbent)
        lines.append(Text(drawn, style="cyan"))
    incumbent = f"   ┃ incumbent {verdict.incumbent:.4f}" if verdict.incumbent is not None else ""
    return [*lines, Text(f"{_forecast_words(verdict)}{incumbent}")]


def _forecast_words(verdict: Verdict) -> str:
    band = f" [{verdict.low:.4f}, {verdict.high:.4f}]" if verdict.low is not None and verdict.high is not None else ""
    return f"forecast {verdict.forecast:.4f}{band}"
