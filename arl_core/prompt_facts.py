"""Gather what a prompt tells: the agenda, the programs, the latest and the best experiments, the last run's diagnostics."""

from __future__ import annotations

from pathlib import Path

from arl_core.config import CampaignConfig
from arl_core.errors import ConfigError
from arl_core.memory import Memory
from arl_core.prompt import PastExperiment, PromptInput
from arl_core.records import Campaign, Experiment


def gather(
    memory: Memory,
    campaign: Campaign,
    config: CampaignConfig,
    incumbent: Experiment,
    parent: Experiment,
    index: int,
    root: Path,
) -> PromptInput:
    """Return what the prompt of experiment `index` is made of. `parent`: whose program is edited.

    The agenda is read anew each time, so an edit of it takes effect at once.

    Raises ConfigError when the agenda cannot be read.
    """
    recent, top = memory.for_prompt(campaign.id, config.prompt.recent, config.prompt.top)
    return PromptInput(
        agenda=_agenda(root / config.prompt.agenda),
        source=parent.source,
        metric=campaign.metric,
        direction=campaign.direction,
        best=_past(incumbent),
        recent=[_past(one) for one in recent],
        top=[_past(one) for one in top],
        diagnostics=diagnostics(recent, config),
        experiment_index=index,
        path=config.problem().path,
        parent=_past(parent) if parent.index != incumbent.index else None,
    )


def diagnostics(recent: list[Experiment], config: CampaignConfig) -> list[str]:
    """One line on time, memory and throughput of the last experiment that trained; empty when none did."""
    for one in recent:
        trained_s = one.costs.get("training", 0.0)
        if one.tokens and trained_s > 0:
            return [
                f"last run #{one.index}: {one.tokens} tokens in {trained_s:.0f} of {config.environment.budget_s:.0f} s "
                f"({one.tokens / trained_s:.0f} tokens/s), {one.peak_memory_mb:.0f} MiB{_on_gpu(one)}"
            ]
        if trained_s > 0:  # data that nobody counts
            return [
                f"last run #{one.index}: {trained_s:.0f} of {config.environment.budget_s:.0f} s, {one.peak_memory_mb:.0f} MiB"
            ]
    return []


def _on_gpu(one: Experiment) -> str:
    """How well a GPU was used, as far as it is known; '' for a CPU."""
    known = one.extra.get("performance") or {}
    forms = {"mfu": ", {:.0%} MFU", "peak_vram_mb": ", {:.0f} MiB of the GPU"}
    return "".join(form.format(known[name]) for name, form in forms.items() if known.get(name) is not None)


def _agenda(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the research agenda {path}: {error}; set prompt.agenda to a Markdown file"
        ) from error


def _past(one: Experiment) -> PastExperiment:
    return PastExperiment(
        one.index,
        one.status,
        one.summary,
        one.value,
        one.estimate,
        one.reason,
        one.confirmed_value,
        one.confirmations,
    )
