"""What Prefect's own page shows of a campaign: progress, a leaderboard, the best diff. A picture, never a condition.

Artifacts are posted from a thread of their own, the latest state only, so an iteration waits for nothing; a server that
does not answer costs one warning and no campaign. Text of candidates is escaped: the page renders Markdown.
"""

from __future__ import annotations

import contextlib
import contextvars
import html
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from arl_core.records import Experiment, confirmed_words, one_line, visible

log = logging.getLogger(__name__)

LEADERS = 10
DIFF_CHARS = 20_000
FAILURES = 3  # in a row, after which nothing is tried for PAUSE_S
PAUSE_S = 300.0
CLOSE_S = 5.0  # longest wait for the last picture at the end


@dataclass(frozen=True)
class Picture:
    """One state of the campaign. leaders: best first; diff: the best program against experiment 0."""

    campaign_id: str
    index: int
    total: int
    leaders: tuple[Experiment, ...]
    diff: str = ""


class UiArtifacts:
    """Posts pictures in the background. Make it inside a flow run: its artifacts belong to that run."""

    def __init__(self, post: Callable[[Picture, dict[str, UUID]], None] | None = None) -> None:
        self._post = post or post_picture
        self._waiting: queue.Queue[Callable[[], Picture] | None] = queue.Queue(maxsize=1)
        self._known: dict[str, UUID] = {}
        context = contextvars.copy_context()  # holds the flow run
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="prefect-artifacts", daemon=True)
        self._thread.start()

    def show(self, make: Callable[[], Picture]) -> None:
        """Have a picture made and posted, both in the background; one that still waits is replaced. Returns at once."""
        while True:
            try:
                self._waiting.put_nowait(make)
                return
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()

    def close(self) -> None:
        """Wait for the last picture, not long."""
        if self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=CLOSE_S)
            except queue.Full:
                return
            self._thread.join(CLOSE_S)

    def _work(self) -> None:
        failures, again_s = 0, 0.0
        while (make := self._waiting.get()) is not None:
            if time.monotonic() < again_s:
                continue  # keep taking, so that nobody waits
            try:
                self._post(make(), self._known)
                failures = 0
            except Exception as error:
                failures += 1
                self._known.clear()  # a server with another database knows none of them
                ending = ""
                if failures >= FAILURES:
                    ending, again_s = f"; left alone for {PAUSE_S:g} s", time.monotonic() + PAUSE_S
                log.warning("Prefect's page is behind: %s%s", one_line(str(error), 200), ending)


def post_picture(picture: Picture, known: dict[str, UUID]) -> None:
    """Post three artifacts. `known` remembers the progress artifact, which is updated in place."""
    from prefect.artifacts import (
        create_markdown_artifact,
        create_progress_artifact,
        create_table_artifact,
        update_progress_artifact,
    )

    key = artifact_key(picture.campaign_id)
    share = 100.0 * min(1.0, picture.index / picture.total) if picture.total else 100.0
    words = f"experiment {picture.index} of {picture.total}"
    if "progress" in known:
        update_progress_artifact(known["progress"], share, description=words)
    else:
        made: Any = create_progress_artifact(share, key=f"{key}-progress", description=words)
        known["progress"] = made
    create_table_artifact(leaderboard(picture.leaders), key=f"{key}-leaderboard", description=f"best after {words}")
    if picture.leaders:
        create_markdown_artifact(best_markdown(picture), key=f"{key}-best", description=f"best after {words}")


def leaderboard(leaders: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Rows of the table, best first."""
    return [
        {
            "experiment": one.index,
            one_line(one.metric, 40) or "value": round(one.value, 4) if one.value is not None else None,
            "confirmed": f"{one.confirmed_value:.4f} ×{one.confirmations}" if one.repeated else "single run",
            "status": one.status.value,
            "on": "" if one.parent_index is None else one.parent_index,
            "edit": plain(one.summary, 100),
        }
        for one in leaders
    ]


def best_markdown(picture: Picture) -> str:
    """The best experiment and its diff against experiment 0, in a fence that the diff cannot close."""
    best = picture.leaders[0]
    value = confirmed_words(best) or (f"{best.value:.4f}, one run" if best.value is not None else "no value")
    diff = visible(picture.diff)[:DIFF_CHARS]
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", diff)), default=0))
    body = f"{fence}diff\n{diff.rstrip()}\n{fence}" if diff else "The untouched target is still the best."
    return f"## Experiment {best.index}: {one_line(best.metric, 40)} {value}\n\n{plain(best.summary, 200)}\n\n{body}\n"


def plain(text: str, limit: int) -> str:
    """A candidate's words as one line without Markdown, HTML or links."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(one_line(text, limit), quote=False))


def artifact_key(campaign_id: str) -> str:
    """Prefect's keys: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]+", "-", campaign_id.lower()).strip("-") or "campaign"
