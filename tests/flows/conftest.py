"""Fixtures of campaigns whose runs are made up: second looks on a real memory, and slots with hosts that train nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arl_core.config import load_config
from arl_core.memory import Memory
from flows import blame, confirm, slots
from flows.display import PlainDisplay
from flows.session import Session
from frozen_env.runtime import gpu_lock
from tests.flows import made_up_slots
from tests.flows.second_looks import CAMPAIGN, MadeUpHost


@pytest.fixture
def without_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit re-runs by a plain call."""
    monkeypatch.setattr(confirm, "commit_repeat", confirm.commit_repeat.fn)


@pytest.fixture
def open_session(tmp_path: Path) -> Callable[..., tuple[Session, MadeUpHost, list[str]]]:
    def opened(
        values: dict[str, float | None], die_at: int | None = None, **settings: Any
    ) -> tuple[Session, MadeUpHost, list[str]]:
        config = load_config("embedded", {f"confirm.{key}": value for key, value in settings.items()})
        memory = Memory(tmp_path / "memory.duckdb")
        if not memory.campaigns():
            memory.create_campaign(CAMPAIGN)
        host, said = MadeUpHost(values, die_at), list[str]()
        display = PlainDisplay(config, said.append)
        session = Session(config, CAMPAIGN, memory, host, display, tmp_path, config.iterations)  # type: ignore[arg-type]
        return session, host, said

    return opened


@pytest.fixture
def made_up_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Slots start hosts of made_up_slots.py, and every GPU that is listed is seen and computes."""
    made_up_slots.MadeUpHost.made = []
    monkeypatch.setattr(slots, "Host", made_up_slots.MadeUpHost)
    monkeypatch.setattr(slots, "train", lambda host, source, *_: host.run(source))
    monkeypatch.setattr(gpu_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(blame, "gpu_fails", lambda _name: "")
    monkeypatch.setattr(gpu_lock, "seen_here", lambda: gpu_lock.visible())
