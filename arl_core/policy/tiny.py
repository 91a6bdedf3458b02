"""The tests' policy: a random Llama of two layers, byte pairs learned from a few lines; nothing to fetch."""

from __future__ import annotations

import functools
from typing import Any

VOCABULARY = 512
CORPUS = """
LEARNING_RATE = 2e-3  # peak step of the matrices
def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = F.rms_norm(self.embed(tokens_BT), (self.width,))
        return self.head(x_BTD)
class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
<<<<<<< SEARCH
=======
>>>>>>> REPLACE
"""


@functools.cache
def tiny_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 512 tokens; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def tiny_base(seed: int) -> tuple[Any, Any]:
    """Return (model, tokenizer): two layers of width 64, float32, random from `seed`; global random state untouched."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from arl_core.policy.seeded import seeded

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with seeded(seed):
        return LlamaForCausalLM(config), tiny_tokenizer()
