"""What a person sees while a campaign runs: a live panel in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
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
    """Follows a campaign. Never decides anything."""

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


class PlainDisplay:
    """One line per event worth a line; for logs, pipes and workers."""

    def __init__(self, config: CampaignConfig, write: Callable[[str], None] | None = None) -> None:
        self._check_every_s = config.environment.check_every_s
        self._write = write or (lambda line: print(line, flush=True))
        self._next_s = 0.0

    def begin(self, index: int, total: int) -> None:
        self._next_s = 0.0
        self._write(f"experiment {index} of {total}")

    def phase(self, text: str) -> None:
        self._write(f"  {text}")

    def candidate(self, summary: str) -> None:
        self._write(f"  trying: {summary}")

    def event(self, event: dict[str, Any]) -> None:
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


class LiveDisplay:
    """A panel that redraws in place: the candidate in flight above, the latest experiments below."""

    def __init__(self, campaign_id: str, config: CampaignConfig, console: Console) -> None:
        self.console = console
        self._campaign_id = campaign_id
        self._config = config
        self._live = Live(self, console=console, refresh_per_second=4)
        self._began_s = time.monotonic()
        self._index = self._total = 0
        self._phase = "starting"
        self._phase_since_s = time.monotonic()
        self._summary = ""
        self._losses: list[float] = []
        self._fraction = 0.0
        self._verdict: Verdict | None = None
        self._rows: list[Experiment] = []
        self._counts: dict[Status, int] = {}
        self._best: Experiment | None = None
        self._policy: dict[str, float] = {}

    def begin(self, index: int, total: int) -> None:
        self._index, self._total = index, total
        self._summary, self._losses, self._fraction, self._verdict = "", [], 0.0, None

    def phase(self, text: str) -> None:
        self._phase, self._phase_since_s = text, time.monotonic()

    def candidate(self, summary: str) -> None:
        self._summary = summary

    def event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self._losses, self._fraction, self._verdict = [], 0.0, None  # a re-run has a curve of its own
                self.phase("training")
            case "scoring":
                self.phase("scoring")
            case "report":
                _, _, self._fraction, loss, _ = event["report"]
                self._losses.append(loss)
            case "verdict":
                self._verdict = event["verdict"]

    def settled(self, experiment: Experiment, best: Experiment | None) -> None:
        self._rows = [*self._rows, experiment][-SHOWN_ROWS:]
        self._counts[experiment.status] = self._counts.get(experiment.status, 0) + 1
        self._best = best

    def updated(self, metrics: dict[str, float]) -> None:
        self._policy = metrics

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def __rich__(self) -> RenderableType:
        best = best_figure(self._best) if self._best else "none yet"
        counts = "  ".join(f"{status.value} {count}" for status, count in self._counts.items())
        head = Text(f"best {best}   {counts}")
        filled = round(self._fraction * WIDTH)
        bar = Text("━" * filled + "╌" * (WIDTH - filled))
        since_s = time.monotonic() - self._phase_since_s
        left_s = (1.0 - self._fraction) * self._config.environment.budget_s
        timing = f"{left_s:.0f} s left" if self._phase == "training" else f"{since_s:.0f} s"
        parts: list[RenderableType] = [head, Text(f"{self._phase}: {self._summary or '...'}  ({timing})")]
        if self._losses:
            parts += [bar, Text(f"{sparkline(self._losses)}  loss {self._losses[-1]:.4f}")]
            parts += _forecast_lines(self._verdict)
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
        done, left = sum(self._counts.values()), self._total - self._index + 1
        if not done or left > FAR_OFF:
            return ""
        return f"   about {clock((time.monotonic() - self._began_s) / done * left)} left"

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


def error_line(error: BaseException) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
