"""What an edit is called in one line."""

from __future__ import annotations

import re

import pytest

from arl_core.edit import summarise
from tests.arl_core.edits import NEW_LR, OLD_LR, SOURCE


@pytest.mark.parametrize(
    ("old", "new", "summary"),
    [
        (OLD_LR, NEW_LR, "MUON_LR: 2e-3 → 2.8e-3"),
        (OLD_LR, NEW_LR + "\nCLIP = 1.0", "MUON_LR: 2e-3 → 2.8e-3; CLIP: none → 1.0"),
        ("q = self.q(x)", "q = norm(self.q(x))", "Attention.forward: q = self.q(x) → q = norm(self.q(x))"),
        ("        return q", "        q = 2 * q\n        return q", "Attention.forward: + q = 2 * q"),
        ("    model.train()", "    model.eval()", "model.train() → model.eval()"),
        ("def norm(x):\n    return x\n\n\n", "", "removes norm"),
        ("def norm(x):", "def clip(x):\n    return x\n\n\ndef norm(x):", "adds clip"),
        ("é", "e", "comments or spelling only"),
        ("2e-3", "0.002", "comments or spelling only"),
        ("é", "é", "no change"),
        ('"muon"', '"<|im_end|>\\x1b"', 'NAME: "muon" → "< |im_end| >\\x1b"'),
    ],
)
def test_a_summary_says_what_changed(old: str, new: str, summary: str) -> None:
    assert old in SOURCE
    assert summarise(SOURCE, SOURCE.replace(old, new)) == summary


def test_a_long_summary_is_cut() -> None:
    new = re.sub("^([A-Z_]+)( =|:)", r"\1X\2", SOURCE, flags=re.M)
    assert len(summarise(SOURCE, new, limit=60)) == 60
    assert summarise(SOURCE, new, limit=60).endswith("…")
