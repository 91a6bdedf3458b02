"""Fixtures for tests of second looks: a campaign on a real memory whose runs are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arl_core.config import load_config
from arl_core.memory import Memory
from flows import confirm
from flows.display import PlainDisplay
from flows.session import Session
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
