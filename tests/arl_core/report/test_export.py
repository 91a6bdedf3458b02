"""The best program for review: right, complete, and nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from arl_core.edit import apply_exactly
from arl_core.errors import ConfigError
from arl_core.report import CampaignData, export_best
from bench.report import invented_campaign


def test_the_exported_diff_makes_the_seed_the_best(tmp_path: Path) -> None:
    campaign, made = invented_campaign(60, seed=1)
    folder = export_best(CampaignData(campaign, made), tmp_path / "best")
    assert sorted(path.name for path in folder.iterdir()) == ["REVIEW.md", "best.diff", "train.py"]
    best = min((one for one in made if one.value is not None), key=lambda one: one.value or 0.0)
    assert (folder / "train.py").read_text(encoding="utf-8") == best.source
    assert apply_exactly(made[0].source, (folder / "best.diff").read_text(encoding="utf-8")) == best.source
    sheet = (folder / "REVIEW.md").read_text(encoding="utf-8")
    assert f"# Review of experiment {best.index}" in sheet
    assert "not confirmed" in sheet
    assert "Nothing was applied" in sheet


def test_it_can_be_exported_again_but_never_over_a_file_of_ones_own(tmp_path: Path) -> None:
    campaign, made = invented_campaign(20)
    data = CampaignData(campaign, made)
    export_best(data, tmp_path / "best")
    export_best(data, tmp_path / "best")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.py").write_text("mine")
    with pytest.raises(ConfigError, match="another folder"):
        export_best(data, tmp_path / "mine")
    assert (tmp_path / "mine" / "train.py").read_text() == "mine"


def test_a_campaign_without_a_score_has_nothing_to_export(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    with pytest.raises(ConfigError, match="no scored program"):
        export_best(CampaignData(campaign, []), tmp_path / "best")
    assert not (tmp_path / "best").exists()
