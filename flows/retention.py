"""What a campaign leaves on disk and in MLflow stays bounded; the memory keeps every experiment.

The rule (settings `retention.*`): folders and MLflow artifacts of the latest `recent` experiments and of the `best` best
ones stay; submitted weights stay of the `weights` best that were kept and of the incumbent, or of all with `keep_weights`;
the policy's last three checkpoints stay. What is removed can be had again from the memory, except the full log of a run (the
memory has its tail) and the weights.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.track import drop_artifacts

if TYPE_CHECKING:
    from flows.session import Session

SUBMISSION = "submission"
FOLDER = re.compile(r"experiment_(\d{5,})$")
CATCH_UP = 8  # experiments before the edge that are looked at again: a campaign may have been killed before it did


def retire(session: Session, newest: int) -> list[int]:
    """Remove what the rule no longer keeps now that experiment `newest` is committed; return the indices concerned.

    Folders of experiments that the memory does not know yet are left alone: their candidates are running.
    """
    rule, campaign, memory = session.config.retention, session.campaign, session.memory
    edge = newest - rule.recent
    folders = {int(found[1]) for path in session.folder.iterdir() if (found := FOLDER.search(path.name))}
    next_index = memory.next_index(campaign.id)
    under_way = {index for index in folders if index >= next_index}
    under_way |= set(memory.missing_indices(campaign.id))
    kept, with_weights = _kept(session)
    old = {index for index in folders if index <= edge} | set(range(max(0, edge - CATCH_UP), edge + 1))
    gone = []
    for index in sorted(old - kept - under_way):
        if session.config.tracking and not drop_artifacts(campaign, index, session.folder):
            break  # MLflow is away, and each try costs seconds: the folders stay, and with them the reminder
        _remove(session.place(index), but=SUBMISSION if session.config.keep_weights else "")
        gone.append(index)
    if not session.config.keep_weights:
        for index in folders - with_weights - under_way - {newest}:
            shutil.rmtree(session.place(index) / SUBMISSION, ignore_errors=True)
    return gone


def is_retired(session: Session, index: int) -> bool:
    """Whether an experiment keeps no folder and no artifacts by now: what is made up for in MLflow is bounded too."""
    rule, memory, campaign = session.config.retention, session.memory, session.campaign
    if index > memory.next_index(campaign.id) - 1 - rule.recent or session.place(index).exists():
        return False
    return index not in _kept(session)[0]


def _kept(session: Session) -> tuple[set[int], set[int]]:
    """Of whatever age: experiments whose folder and artifacts stay, and those of them whose submitted weights do too."""
    rule, memory, campaign = session.config.retention, session.memory, session.campaign
    with_weights = {one.index for one in memory.top(campaign.id, rule.weights, only_kept=True)}
    if (incumbent := memory.incumbent(campaign.id)) is not None:
        with_weights.add(incumbent.index)  # the last promoted, which need not have the best mean
    return {one.index for one in memory.top(campaign.id, rule.best)} | with_weights, with_weights


def _remove(folder: Path, but: str) -> None:
    """Remove a folder, or all of it but one part."""
    if not but or not (folder / but).is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for part in folder.iterdir():
        if part.name == but:
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
