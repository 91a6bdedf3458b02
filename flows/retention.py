"""What a campaign leaves on disk and in MLflow stays bounded; the memory keeps every experiment.

The rule (settings `retention.*`): folders and MLflow artifacts of the latest `recent` experiments and of the `best` best
ones stay; submitted weights stay of the `weights` best that were kept; the policy's last three checkpoints stay. What is
removed can be had again from the memory, except the full log of a run (the memory has its tail) and the weights.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from frozen_env.contract import Status
from tasks.track import drop_artifacts

if TYPE_CHECKING:
    from flows.session import Session

FOLDER = re.compile(r"experiment_(\d{5,})$")
CATCH_UP = 8  # experiments before the edge that are looked at again: a campaign may have been killed before it did


def retire(session: Session, newest: int) -> list[int]:
    """Remove what the rule no longer keeps now that experiment `newest` is committed; return the indices concerned."""
    rule, campaign = session.config.retention, session.campaign
    edge = newest - rule.recent
    folders = {int(found[1]): path for path in session.folder.iterdir() if (found := FOLDER.search(path.name))}
    best = session.memory.top(campaign.id, max(rule.best, rule.weights))
    kept = {one.index for one in best[: rule.best]}
    old = {index for index in folders if index <= edge} | set(range(max(0, edge - CATCH_UP), edge + 1))
    gone = []
    for index in sorted(old - kept):
        if session.config.tracking and not drop_artifacts(campaign, index, session.folder):
            continue  # MLflow is away: the folder stays, and with it the reminder
        shutil.rmtree(session.place(index), ignore_errors=True)
        gone.append(index)
    if not session.config.keep_weights:
        with_weights = {one.index for one in best[: rule.weights] if one.status is Status.KEPT}
        for index in folders.keys() - with_weights - {newest}:
            shutil.rmtree(session.place(index) / "submission", ignore_errors=True)
    return gone
