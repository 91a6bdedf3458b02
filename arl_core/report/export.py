"""The best program for a person to review: the file, its diff against the seed, a sheet. Applies nothing."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from arl_core.edit import named_path
from arl_core.errors import ConfigError
from arl_core.records import one_line, visible
from arl_core.report import findings
from arl_core.report.cautions import cautions
from arl_core.report.findings import Answer
from arl_core.report.source import CampaignData
from arl_core.report.words import number, signed
from frozen_env.description import ROOT
from frozen_env.files import split_marked

SHEET, DIFF = "REVIEW.md", "best.diff"


def export_best(data: CampaignData, folder: Path) -> Path:
    """Write the edited files, best.diff and REVIEW.md into `folder` and return it. Nothing else is touched.

    What an earlier export wrote is replaced as long as it is unchanged: the sheet ends with the digests. Raises ConfigError
    when the campaign has no scored program yet, or when `folder` holds another file of one of these names, a sheet with
    notes in it included; then nothing is written.
    """
    found = findings.answer(data.experiments)
    if found.best is None or found.start is None or not found.best.source:
        raise ConfigError(f"campaign {data.campaign.id} has no scored program yet; export it when it has one")
    files = split_marked(found.best.source) or {
        Path(named_path(found.best.diff, found.best.source)).name: found.best.source
    }
    made = {name: text.encode("utf-8", "replace") for name, text in {**files, DIFF: found.diff}.items()}
    made[SHEET] = _sealed(_sheet(data, found, folder), made)
    _check_foreign(folder, made)
    for name, content in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _check_foreign(folder: Path, made: Mapping[str, bytes]) -> None:
    """Raise ConfigError for a file that would be lost: neither what is to be written nor what an earlier export wrote."""
    ours = _written(folder / SHEET)
    for name, content in sorted(made.items(), key=lambda each: each[0] != SHEET):  # without the sheet none is known
        path = folder / name
        if path.exists() and (there := path.read_bytes()) != content and _digest(there) != ours.get(name):
            raise ConfigError(
                f"{path} is not what an export wrote, or was changed since; move it away, or give --export-best another folder"
            )


def _sealed(sheet: str, files: Mapping[str, bytes]) -> bytes:
    """Return the sheet with the digests of the files, and of itself, by which a later export knows them again."""
    sums = "\n".join(f"    {_digest(content)}  {name}" for name, content in files.items())
    told = f"## Files\n\nAnother export replaces these, and this sheet, while their SHA-256 digests hold:\n\n{sums}\n"
    text = f"{sheet}\n{told}".encode("utf-8", "replace")
    return text + f"\n<!-- {_digest(text)} -->\n".encode()


def _written(sheet: Path) -> dict[str, str]:
    """Digests by name of what an earlier export wrote, the sheet's own only while it is whole; {} without a sheet."""
    if not sheet.is_file():
        return {}
    content = sheet.read_bytes()
    told = re.findall(r"^    ([0-9a-f]{64})  (.+)$", content.decode("utf-8", "replace"), re.MULTILINE)
    ours = {name: digest for digest, name in told}
    text, _, seal = content.rpartition(b"\n<!-- ")
    if seal.startswith(_digest(text).encode()):
        ours[SHEET] = _digest(content)
    return ours


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_root(path: Path) -> str:
    """The word of a command that names a file, for a reader who stands in the repository's root."""
    path, root = path.resolve(), ROOT.resolve()
    return shlex.quote(str(path.relative_to(root) if path.is_relative_to(root) else path))


def _sheet(data: CampaignData, found: Answer, folder: Path) -> str:
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
        f"- {data.metric}: {number(found.start.figure)} → {number(best.figure)}, {seen}",
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
        lines.append(f"- #{one.index} {number(one.figure)}{gain}: {_quoted(one.summary)}")
    lines += ["", "## Look for", ""]
    lines += [f"- [ ] {question}" for question in QUESTIONS]
    lines += ["", "## Cautions", ""]
    noise = findings.noise_sd(data.experiments)
    lines += [f"- {line}" for line in cautions(found, data.experiments, noise, _quoted)]
    lines += ["", "## Apply it", "", "Nothing was applied. From the repository's root, after reading the diff:", ""]
    diff = _from_root(folder / DIFF)
    lines += [f"    git apply --check {diff} && git apply {diff}", ""]
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
