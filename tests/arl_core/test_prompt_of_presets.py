"""At the presets' own lengths the policy sees what it edits: counted with the embedded policy's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from arl_core.config import load_config
from arl_core.edit import read_constants
from arl_core.policy.weights import prepare_embedded
from arl_core.prompt import PastExperiment, PromptInput, build_prompt
from flows.warm_start import start_state
from frozen_env.contract import Status
from frozen_env.fetch import data_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def count_tokens():
    tokenizer = AutoTokenizer.from_pretrained(prepare_embedded(data_dir()), local_files_only=True)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("preset", ["embedded", "replay"])
def test_after_many_experiments_the_prompt_still_shows_every_constant_and_the_latest_edits(preset, count_tokens):
    config = load_config(preset)
    is_replay = preset == "replay"
    source = (ROOT / config.source).read_text(encoding="utf-8") if is_replay else start_state(preset)[1]
    edits = ["WARMDOWN_RATIO: 0.42 → 0.44", "WEIGHT_DECAY: 0.188 → 0.134; MATRIX_LR: 0.014 → 0.02"]
    past = [PastExperiment(i, Status.DISCARDED, edits[i % 2], 0.98 + i / 1e4) for i in range(60)]
    given = PromptInput(
        agenda=(ROOT / config.prompt.agenda).read_text(encoding="utf-8"),
        source=source,
        metric="val_bpb",
        direction="lower",
        best=past[0],
        recent=past[: -config.prompt.recent - 1 : -1],
        top=past[: config.prompt.top],
        diagnostics=["last run #59: 1310720 tokens in 20 of 20 s (65536 tokens/s), 512 MiB"],
    )
    prompt = build_prompt(given, count_tokens, config.policy.prompt_tokens)
    assert "constants cut" not in prompt.left_out
    for name in read_constants(source):
        assert f"\n{name} = " in prompt.text
    for index in range(59, 56, -1):
        assert f"\n#{index} +" in prompt.text
