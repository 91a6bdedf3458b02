"""The best program for a person to review: the file, its diff against the seed, a sheet. Applies nothing."""

from __future__ import annotations

from pathlib import Path

from arl_core.edit import named_path
from arl_core.errors import ConfigError
from arl_core.records import one_line, visible
from arl_core.report import findings, words
from arl_core.report.findings import Answer, figure_of
from arl_core.report.source import CampaignData
from arl_core.report.words import number, signed
from frozen_env.files import split_marked


def export_best(data: CampaignData, folder: Path) -> Path:
    """Write the edited files, best.diff and REVIEW.md into `folder` and return it. Nothing else is touched.

    Raises ConfigError when the campaign has no scored program yet, or when `folder` holds other files of these names
    that a report did not write.
    """
    found = findings.answer(data.experiments)
    if found.best is None or found.start is None or not found.best.source:
        raise ConfigError(f"campaign {data.campaign.id} has no scored program yet; export it when it has one")
    sheet = folder / "REVIEW.md"
    files = split_marked(found.best.source) or {
        Path(named_path(found.best.diff, found.best.source)).name: found.best.source
    }
    for name in files:
        if (folder / name).exists() and not sheet.exists():
            raise ConfigError(f"{folder} holds a {name} that no report wrote; give --export-best another folder")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="replace", newline="")
    (folder / "best.diff").write_text(found.diff, encoding="utf-8", errors="replace", newline="")
    sheet.write_text(_sheet(data, found), encoding="utf-8", errors="replace")
    return folder


def _sheet(data: CampaignData, found: Answer) -> str:
    assert found.best is not None
    assert found.start is not None
    best, campaign = found.best, data.campaign
    path = named_path(best.diff, best.source)
    seen = f"confirmed on {best.confirmations} fresh seeds" if found.confirmed else "a single run, not confirmed"
    lines = [
        f"# Review of experiment {best.index}",
        "",
        f"Campaign {campaign.id}, preset {campaign.preset}, seed {campaign.seed}, frozen environment "
        f"{campaign.environment_digest}.",
        "",
        f"- {data.metric}: {number(figure_of(found.start))} → {number(figure_of(best))}, {seen}",
        f"- lines changed: {_changed_lines(found.diff)}; parent: experiment {best.parent_index}",
        f"- sandbox: {one_line(best.sandbox, 40) or 'not recorded'}",
        f"- peak memory {best.peak_memory_mb:.0f} MiB" + (f", {best.tokens:,} training tokens" if best.tokens else ""),
        "",
        "## Steps from the seed",
        "",
    ]
    for generation in findings.lineage(data.experiments):
        one = generation.experiment
        gain = (
            f" ({signed(-generation.gain if one.direction == 'lower' else generation.gain)})" if generation.gain else ""
        )
        lines.append(f"- #{one.index} {number(figure_of(one))}{gain}: {_quoted(one.summary)}")
    lines += ["", "## Look for", ""]
    lines += [f"- [ ] {question}" for question in QUESTIONS]
    lines += ["", "## Cautions", ""]
    lines += [f"- {line}" for line in words.cautions(found, data.experiments, findings.noise_sd(data.experiments))]
    lines += ["", "## Apply it", "", "Nothing was applied. From the repository's root, after reading the diff:", ""]
    lines += ["    git apply --check best.diff && git apply best.diff", ""]
    lines += [
        f"The diff is against the campaign's experiment 0: `{path}` with the preset's constants. Where it does not",
        "apply, the file has other constants there: carry the change over by hand.",
    ]
    return "\n".join(lines) + "\n"


QUESTIONS = (
    "Does every changed line have a reason that would hold on another seed, budget or machine?",
    "Is a gain perhaps only speed on this machine (more steps in the budget)?",
    "Do constants stand at the edge of a sane range?",
    "Are there edits on the way that do nothing? Take them out and repeat the run.",
    "Does the file still say what it does, or do names and comments now lie?",
)


def _changed_lines(diff: str) -> str:
    lines = diff.splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    return f"+{added} −{removed}"


def _quoted(text: str) -> str:
    """A candidate's words as Markdown code: no link, image or HTML comes to life in a viewer."""
    return "`" + visible(one_line(text, 200)).replace("`", "'") + "`"
