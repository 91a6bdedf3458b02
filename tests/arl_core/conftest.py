"""A memory with one campaign in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from arl_core.memory import Memory
from tests.arl_core.memories import campaign


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    memory = Memory(tmp_path / "memory.duckdb")
    memory.create_campaign(campaign())
    return memory
