"""How a campaign is opened, new or resumed, and closed again. What would stop it is said first."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arl_core.campaign_lock import campaign_lock
from arl_core.config import CampaignConfig
from arl_core.errors import ConfigError, EditRejected
from arl_core.memory import Memory
from arl_core.records import Campaign, State, utc_now
from arl_core.stop_conditions import deadline
from flows.blame import check_disk
from flows.display import open_display
from flows.nodes import NodeSlots
from flows.session import Session
from flows.slots import LocalSlots, Slots
from flows.software import changed, software
from flows.start import Start, flow_run_id
from flows.surroundings import ROOT
from flows.under_way import UnderWay
from frozen_env import manifest
from frozen_env.check import get_ready
from frozen_env.contract import ResearchError
from frozen_env.description import BUILT_IN
from frozen_env.fetch import data_dir
from frozen_env.files import join
from tasks.show import UiArtifacts

SANDBOX_OFF = (
    "WARNING: THE SANDBOX IS OFF. Every candidate can read, write, send and end whatever you can. "
    "It is recorded on every result of this campaign."
)
NO_CURVE = "this problem has no training curve (run.curve): no run is stopped early"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_session(start: Start) -> Iterator[Session]:
    """Open the campaign of this start and close everything at the end.

    Raises CampaignLocked when another campaign runs on this memory, MemoryFileError, ManifestError, DataMissing,
    HostError and ConfigError, each naming its remedy. Nothing is written before all of them have passed.
    """
    config = start.config
    memory_path = ROOT / config.memory
    memory_path.parent.mkdir(parents=True, exist_ok=True)
    check_disk(memory_path.parent, None if config.nodes.deployment else config.environment)
    source = read_source(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(campaign_lock(memory_path))
        # Hosts warm up while the memory is opened. With nodes one only says what our frozen environment is.
        local = LocalSlots(config, 1 if config.nodes.deployment else config.parallel, memory_path.parent / "host.log")
        stack.callback(local.close)
        memory = Memory(memory_path)
        stack.callback(memory.close)
        local.wait_ready()
        digest = local.environment_digest
        campaign = resumed(memory, start.resume, digest) if start.resume else new_campaign(memory, digest, config)
        folder = memory_path.parent / "campaigns" / campaign.id
        folder.mkdir(parents=True, exist_ok=True)
        keep_seed(folder / "seed_train.py", source)
        display = stack.enter_context(open_display(campaign.id, config))
        if local.sandbox == "OFF":
            display.say(SANDBOX_OFF)
        if not config.problem().has_curve:
            display.say(NO_CURVE)
        local.under_way = UnderWay(folder / "under_way")
        local.say = display.say
        slots: Slots = local
        if config.nodes.deployment:
            local.close()
            local.notes.clear()
            slots = NodeSlots(config, campaign.id, digest, display.say)
            stack.callback(slots.close)
        for note in local.notes:
            display.say(note)
        session = Session(config, campaign, memory, slots, display, folder)
        _begin(session, start)
        session.artifacts = UiArtifacts()
        stack.callback(session.artifacts.close)
        with _status_noted(memory, campaign.id):
            yield session


def _begin(session: Session, start: Start) -> None:
    """Give the session the bounds of this start and write them down, with what its results stand on; say what has changed there."""
    config, campaign, memory = session.config, session.campaign, session.memory
    following = max(memory.next_index(campaign.id), *(index + 1 for index in session.landed), 0)
    session.last_index = start.last_index(following)
    until = config.stop.until and deadline(config.stop.until, datetime.now().astimezone()).isoformat()
    before = (memory.state(campaign.id) or State()).values.get("start", {})
    if note := changed(before.get("software", {}), now := software()):
        session.display.say(note)
    session.start = {
        "flow_run": flow_run_id(),
        "first": following if start.first is None else start.first,
        "last": session.last_index,
        "until": until,
        "software": now,
    }
    note_start(memory, campaign.id, session.start)


@contextlib.contextmanager
def _status_noted(memory: Memory, campaign_id: str) -> Iterator[None]:
    """Have the memory say that the campaign runs, and then how it ended."""
    memory.set_status(campaign_id, "running")
    try:
        yield
    except BaseException as error:
        stopped = not isinstance(error, Exception)  # Ctrl-C, SIGTERM, Prefect's cancelling
        why = "" if stopped else str(error) or type(error).__name__
        try:
            memory.set_status(campaign_id, "interrupted" if stopped else "failed", reason=why)
        except ResearchError as another:  # a full disk: the first error is the one to tell
            log.warning("the campaign's end is not noted in its memory: %s", another)
        raise
    memory.set_status(campaign_id, "finished")


def keep_seed(path: Path, source: str) -> None:
    """Write the target down as the campaign began with it, once, and whole or not at all."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(source, encoding="utf-8")
        os.replace(partial, path)


def note_start(memory: Memory, campaign_id: str, begun: dict[str, Any]) -> None:
    """Write down which flow run this is before its first experiment: killed until then, a retry finds its campaign."""
    state = memory.state(campaign_id) or State()
    memory.commit_state(campaign_id, dataclasses.replace(state, values=state.values | {"start": begun}))


def preflight(start: Start) -> None:
    """Find what would stop a campaign before a server is started for it. Raises what open_session() would."""
    config = start.config
    manifest.verify()
    get_ready(config.environment, data_dir(), functools.partial(print, flush=True))
    read_source(config)
    memory_path = ROOT / config.memory
    memory_path.parent.mkdir(parents=True, exist_ok=True)
    check_disk(memory_path.parent, None if config.nodes.deployment else config.environment)
    with campaign_lock(memory_path), contextlib.closing(Memory(memory_path)) as memory:
        if start.resume:
            memory.get_campaign(start.resume)


def read_source(config: CampaignConfig) -> str:
    """Return the target with the description's or preset's constants written into it: experiment 0."""
    from arl_core.edit import write_constants
    from arl_core.edit.rules import DEFAULT_RULES, check_text

    path = ROOT / config.source
    try:
        if path.is_dir():
            source = join({name: (path / name).read_text(encoding="utf-8") for name in config.problem().files})
        else:
            source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the target {path}: {error}; set source to a readable file or folder") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    source = write_constants(source, config.target)
    try:
        check_text(source, config.edit.max_source_kb, DEFAULT_RULES.max_line_chars, "it")
    except EditRejected as error:
        remedy = "raise edit.max_source_kb" if error.code == "too_large" else "mend the line"
        raise ConfigError(f"every edit of {path} would be refused: {error}; {remedy}") from error
    return source


def new_campaign(memory: Memory, environment_digest: str, config: CampaignConfig) -> Campaign:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    problem = config.problem()
    line = config.preset if config.environment.problem == BUILT_IN else problem.name
    campaign = Campaign(
        id=f"{line}-{stamp}-{secrets.token_hex(2)}",
        preset=config.preset,
        config=config.to_json(),
        environment_digest=environment_digest,
        seed=config.seed,
        started_at=utc_now(),
        problem=problem.name,
        metric=problem.metric,
        direction=problem.direction,
    )
    memory.create_campaign(campaign)
    return campaign


def resumed(memory: Memory, resume: str, environment_digest: str) -> Campaign:
    """Return the campaign to go on with. Raises ConfigError when its frozen environment is not the present one."""
    campaign = memory.get_campaign(resume)
    if campaign.environment_digest != environment_digest:
        raise ConfigError(
            f"campaign {campaign.id} ran on frozen environment {campaign.environment_digest}, this is {environment_digest}: "
            "their results are not comparable. Restore that version and its settings, or start a new campaign (--fresh)."
        )
    return campaign
