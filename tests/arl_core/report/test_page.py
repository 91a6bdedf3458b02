"""The page: complete for every campaign, and inert whatever a candidate wrote."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from arl_core.records import Campaign, Experiment
from arl_core.report import CampaignData, figures, page, style, write_report
from arl_core.report.style import styled
from bench.report import invented_campaign
from frozen_env.contract import Status

VOID = {"meta", "img", "br", "hr", "link", "input"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "</td></table></details><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">"
    "<iframe src='javascript:parent.document.title=\"owned\"'></iframe><base href='//evil.example/'>"
    "</style><style>*{display:none}</style>{{ 7*7 }}{% raw %}$\\frac{$ \u202e \ud800 \0 \x1b[2J]]>--><!--"
)


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Small pixels take long: what is tested here is not how sharp they are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(style, "PNG_DPI", 30)
        yield


class Outline(HTMLParser):
    """Every tag with its attributes, and whether tags close in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.misnested: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.misnested.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    found.close()
    return found


def report(tmp_path: Path, campaign: Campaign, experiments: list[Experiment]) -> str:
    path = write_report(CampaignData(campaign, experiments), tmp_path / "out")
    return path.read_text(encoding="utf-8")


def assert_inert(html: str) -> Outline:
    """Well nested, no tag or attribute that runs or loads anything, a policy that would stop it anyway."""
    found = outline(html)
    assert found.open == []
    assert found.misnested == []
    words = (
        "html head meta title style body header main section nav p b h1 h2 h3 a dl dt dd div span figure img table thead tbody "
        "tr th td details summary pre ol ul li code"
    )
    allowed = set(words.split())
    assert {tag for tag, _ in found.tags} <= allowed
    for tag, attributes in found.tags:
        assert set(attributes) <= {
            "charset",
            "http-equiv",
            "content",
            "name",
            "lang",
            "class",
            "id",
            "href",
            "src",
            "alt",
            "open",
        }
        if "src" in attributes:
            assert (tag, str(attributes["src"])[:26]) == ("img", "data:image/svg+xml;base64,")
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    (policy,) = [a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in str(policy)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in str(policy)
    return found


def hostile(index: int, status: Status = Status.KEPT, **fields: object) -> Experiment:
    known: dict[str, object] = {
        "metric": "val_bpb",
        "parent_index": index - 1,
        "value": 1.5 - index / 100,
        "incumbent_value": 1.5,
        "summary": HOSTILE,
        "reason": HOSTILE,
        "diff": f"--- a/target/train.py\n+++ b/target/train.py\n@@ -1 +1 @@\n-A = 1\n+{HOSTILE}\n",
        "source": f"A = 1\n# {HOSTILE}\nB = {index}\n",
        "log": HOSTILE,
        "completion": HOSTILE,
        "sandbox": HOSTILE,
        "repairs": (HOSTILE,),
        "costs": {HOSTILE: 1.0, "training": 3.0, "iteration": 4.0},
        "extra": {"update": {HOSTILE: 1.0, "entropy": 0.5}},
    }
    return Experiment("c", index, status, **(known | fields))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"environment": {"budget_s": 20.0, HOSTILE: HOSTILE}}
    campaign = Campaign("c" + HOSTILE, HOSTILE, config, HOSTILE, 0, "2026-11-23T00:00:00+00:00", "text", metric=HOSTILE)
    seed = hostile(0, parent_index=None, value=1.6, incumbent_value=None, source="A = 1\nB = 0\n")
    experiments = [seed, *(hostile(index) for index in range(1, 4)), hostile(4, Status.CRASHED, value=None)]
    campaign = dataclasses.replace(campaign, status="failed")
    data = CampaignData(campaign, experiments, reason=HOSTILE)
    return write_report(data, tmp_path_factory.mktemp("hostile"))


def test_hostile_text_is_shown_as_text_and_nothing_else(hostile_page: Path) -> None:
    html = hostile_page.read_text(encoding="utf-8")
    found = assert_inert(html)
    assert "<script>document.title='owned'</script>" in "".join(found.text)
    assert "{{ 7*7 }}" in "".join(found.text), "a candidate's template is not rendered"
    assert "\u202e" not in html, "text that turns the line around is made visible"
    assert "\x1b" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_runs_nothing_of_a_hostile_page(hostile_page: Path, tmp_path: Path) -> None:
    def dom(path: Path) -> str:
        command = [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    shown = dom(hostile_page)
    (title,) = re.findall(r"<title>(.*?)</title>", shown, re.DOTALL)
    assert title != "owned"
    assert "All experiments" in shown
    assert "<script" not in shown
    # The check can fail: the same words unescaped and without the policy take the page over.
    naked = tmp_path / "naked.html"
    naked.write_text(f"<title>x</title><table><tr><td>{HOSTILE}", encoding="utf-8", errors="replace")
    assert "<title>owned</title>" in dom(naked)


@pytest.mark.parametrize(
    ("experiments", "words"),
    [
        (0, "as it began"),
        (1, "after the untouched target"),
        (60, "down"),
    ],
)
def test_a_campaign_of_any_length_has_a_page(tmp_path: Path, experiments: int, words: str) -> None:
    campaign, made = invented_campaign(experiments, seed=1)
    found = assert_inert(report(tmp_path, campaign, made))
    text = " ".join("".join(found.text).split())
    assert words in text
    assert "still running" in text
    assert "What the policy learned" in text


def test_a_campaign_without_any_experiment_or_score_has_a_page(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    assert "No experiment is committed yet" in report(tmp_path, campaign, [])
    crashed = Experiment("c", 0, Status.CRASHED, metric="val_bpb", reason="no way")
    assert "No experiment has a score yet" in report(tmp_path, campaign, [crashed])


def test_a_metric_to_be_raised_is_told_so(tmp_path: Path) -> None:
    raised = {"metric": "accuracy", "direction": "higher"}
    campaign = Campaign("c", "p", {}, "d", 0, "2026-11-23T00:00:00+00:00", "text", **raised)  # type: ignore[arg-type]
    seed = Experiment("c", 0, Status.KEPT, value=0.5, **raised)  # type: ignore[arg-type]
    better = Experiment("c", 1, Status.KEPT, value=0.6, parent_index=0, **raised)  # type: ignore[arg-type]
    assert "accuracy 0.6000, up 0.1000 (20.0 %) from 0.5000" in report(tmp_path, campaign, [seed, better])


def test_the_headline_says_confirmed_only_when_it_is(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    seed = Experiment("c", 0, Status.KEPT, metric="val_bpb", value=1.6, source="A = 1\n")
    better = {"metric": "val_bpb", "value": 1.4, "parent_index": 0, "source": "A = 2\n"}
    single = report(tmp_path, campaign, [seed, Experiment("c", 1, Status.KEPT, **better)])  # type: ignore[arg-type]
    assert "improved, not confirmed" in single
    assert "single run" in single
    extra = {"confirmation": {"promotion": 2, "noise_sd": 0.01, "pairs": 4, "gain": 0.14, "error": 0.006}}
    sure = Experiment("c", 1, Status.KEPT, confirmed_value=1.45, confirmations=4, extra=extra, **better)  # type: ignore[arg-type]
    told = report(tmp_path, campaign, [seed, sure])
    assert "improved, confirmed" in told
    assert "confirmed ×4" in told
    assert "val_bpb 1.4500, down 0.1500" in told
    assert (
        "in 4 pairs of runs experiment 1 was 0.1400 ± 0.0060 (standard error) better than the incumbent before it"
        in told
    )
    assert "luckiest" not in told, "what fresh seeds confirmed was not selected by luck"
    assert "mean of 4 fresh seeds, ± 0.0050 standard error" in told


def test_a_lucky_run_that_was_not_confirmed_is_shown_where_it_was(tmp_path: Path) -> None:
    campaign, _ = invented_campaign(0)
    extra = {"confirmation": {"promotion": 1, "noise_sd": 0.02}}
    seed = Experiment(
        "c", 0, Status.KEPT, metric="val_bpb", value=1.58, confirmed_value=1.6, confirmations=3, extra=extra
    )
    lucky = Experiment("c", 1, Status.DISCARDED, metric="val_bpb", value=1.5, parent_index=0)
    html = report(tmp_path, campaign, [seed, lucky])
    assert "1 looked better in a single run, none was confirmed" in html
    low, high = figures._window([seed, lucky], higher=False)
    assert low <= 1.5 < 1.6 <= high, "its dot is not clipped to the incumbent's line"


def test_figures_stand_beside_the_page_and_old_ones_go(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves.png").write_bytes(b"of an older report")
    campaign, made = invented_campaign(40)
    report(tmp_path, campaign, made)
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(page.FIGURES)
    report(tmp_path, campaign, made[:1])
    assert not (tmp_path / "out" / "learning.png").exists()


def test_the_same_campaign_gives_the_same_figures() -> None:
    _, made = invented_campaign(30)

    def drawn() -> bytes:
        with styled():
            buffer = io.BytesIO()
            figures.best_so_far(made).savefig(buffer, format="svg", metadata={"Date": None})
        return buffer.getvalue()

    assert drawn() == drawn()
