"""Build the prompt from the agenda, the memory and the last run's diagnostics."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from arl_core.config import CampaignConfig
from arl_core.memory import Memory
from arl_core.prompt import CountTokens, Prompt, build_prompt
from arl_core.prompt_facts import gather
from arl_core.records import Campaign, Experiment
from tasks import ONCE


@task(name="prompt", **ONCE)
def make_prompt(
    memory: Memory,
    campaign: Campaign,
    config: CampaignConfig,
    incumbent: Experiment,
    parent: Experiment,
    index: int,
    count_tokens: CountTokens,
    root: Path,
) -> Prompt:
    """Return the prompt of experiment `index`, which edits the program of `parent`, fitted to policy.prompt_tokens.

    Raises ConfigError when the agenda cannot be read.
    """
    facts = gather(memory, campaign, config, incumbent, parent, index, root)
    return build_prompt(facts, count_tokens, config.policy.prompt_tokens)
