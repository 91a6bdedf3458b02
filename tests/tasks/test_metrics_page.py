"""docs/metrics.md names every number that is logged."""

from __future__ import annotations

import re
from pathlib import Path

from arl_core.diversity import diversity
from arl_core.policy.policy import Policy
from arl_core.records import Experiment
from tests.arl_core.policy.conftest import PROMPT, SOURCE, tiny

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
AFTER_THE_RECORD = ("commit", "track")  # the next experiment tells them


def named(metric: str) -> bool:
    return f"`{metric}`" in PAGE


def test_every_term_of_an_update_is_on_the_page() -> None:
    policy = Policy.load(tiny(epochs=1), Path("unused"))
    terms = policy.update(policy.propose_many([PROMPT] * 2, [SOURCE] * 2, [0, 1]), [1.0, -1.0])
    assert len(terms) > 20
    terms |= diversity([Experiment("c", 1, "duplicate")])
    assert [name for name in terms if not named(f"policy/{name}")] == []


def test_every_part_of_an_iterations_time_is_on_the_page() -> None:
    flows = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "flows").glob("*.py")))
    parts = set(re.findall(r'\.timed\("(\w+)"\)', flows)) - set(AFTER_THE_RECORD)
    before = {f"before/{part}" for part in (*AFTER_THE_RECORD, "between")}
    assert {"propose", "load_policy", "confirm"} < parts
    assert [name for name in sorted(parts | before) if not named(f"seconds/{name}")] == []
