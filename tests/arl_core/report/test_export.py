"""The best program for review: right, complete, and nothing else touched."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from arl_core.edit import apply_exactly
from arl_core.errors import ConfigError
from arl_core.report import CampaignData, export, export_best
from bench.report import invented_campaign
from frozen_env.contract import Status


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


@pytest.mark.parametrize("inside", [True, False], ids=["a folder in the root", "a folder elsewhere"])
def test_the_sheets_command_applies_the_diff_from_the_root(
    tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, made = invented_campaign(60, seed=1)
    root = tmp_path / "root"
    (root / "target").mkdir(parents=True)
    (root / "target" / "train.py").write_text(made[0].source, encoding="utf-8")
    monkeypatch.setattr(export, "ROOT", root)
    folder = export_best(CampaignData(campaign, made), (root if inside else tmp_path) / "the best")
    (command,) = re.findall(r"^    (git apply .*)$", (folder / "REVIEW.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert ("'the best/best.diff'" in command) == inside
    subprocess.run(command, shell=True, cwd=root, check=True)
    assert (root / "target" / "train.py").read_bytes() == (folder / "train.py").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_earlier_export_is_replaced_when_the_campaign_has_gone_on(tmp_path: Path) -> None:
    campaign, made = invented_campaign(60)
    first = contents(export_best(CampaignData(campaign, made[:20]), tmp_path))
    assert contents(export_best(CampaignData(campaign, made[:20]), tmp_path)) == first
    second = contents(export_best(CampaignData(campaign, made), tmp_path))
    assert all(second[name] != first[name] for name in ("train.py", "best.diff", "REVIEW.md"))


@pytest.mark.parametrize("name", ["train.py", "best.diff", "REVIEW.md"])
def test_a_file_of_ones_own_is_never_overwritten(tmp_path: Path, name: str) -> None:
    campaign, made = invented_campaign(60)
    fresh, used = tmp_path / "fresh", tmp_path / "used"
    fresh.mkdir()
    export_best(CampaignData(campaign, made[:20]), used)
    for folder in (fresh, used):
        (folder / name).write_text("mine", encoding="utf-8")
        before = contents(folder)
        with pytest.raises(ConfigError, match=rf"{name} is not what an export wrote.*another folder"):
            export_best(CampaignData(campaign, made), folder)
        assert contents(folder) == before, "nothing is written, not even the other files"


def test_notes_in_the_sheet_are_ones_own(tmp_path: Path) -> None:
    campaign, made = invented_campaign(20)
    sheet = export_best(CampaignData(campaign, made), tmp_path) / "REVIEW.md"
    sheet.write_text(sheet.read_text(encoding="utf-8").replace("- [ ]", "- [x]", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"REVIEW\.md is not what an export wrote, or was changed since"):
        export_best(CampaignData(campaign, made), tmp_path)
    assert "- [x]" in sheet.read_text(encoding="utf-8")


def test_a_campaign_without_a_score_has_nothing_to_export(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    with pytest.raises(ConfigError, match="no scored program"):
        export_best(CampaignData(campaign, []), tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_a_crashs_own_words_are_code_in_the_sheet(tmp_path: Path) -> None:
    campaign, made = invented_campaign(20)
    reason = "[click](https://evil.example) <img src=x> `now`"
    crashes = [
        dataclasses.replace(made[-1], index=21 + k, status=Status.CRASHED, value=None, reason=reason) for k in range(9)
    ]
    sheet = (export_best(CampaignData(campaign, made + crashes), tmp_path) / "REVIEW.md").read_text(encoding="utf-8")
    assert "most often with `[click](https://evil.example) <img src=x> 'now'` (" in sheet
