"""The network: a frozen base, a LoRA adapter that learns, a value head, and the forward passes that PPO needs.

Legend of shapes: P prompt tokens, T completion tokens, F free tokens of one edit, R rollouts of one prompt, D width,
V vocabulary.

What an update costs is the prompt: 1,500 tokens for 100 of completion. Rollouts of one prompt share one pass over it, and
its keys and values are constants for the gradient unless `prompt_grad` says otherwise: the adapter then learns through
what it does to completion tokens only, at a fifth of the price.

A base in bfloat16 has 8 bits of precision, and an adapter learns in steps far smaller. So the layers that carry it compute what
both give in float32 and round once. Float32 logits were tried too: of the 0.062 that rounding moves a logit by they take 0.003,
since hidden states carry the rest, and sampling takes a third longer (docs/log.md).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from arl_core.errors import PolicyError
from arl_core.policy.losses import masked
from arl_core.policy.packing import behind
from arl_core.policy.rollout import Rollout
from arl_core.policy.seeded import seeded
from arl_core.policy.settings import PolicySettings

ADAPTER = "rl"


class ValueHead(nn.Module):
    """Says how many standard deviations above its running mean the reward will be, from a hidden state.

    Starts at 0 everywhere, so that the first baseline is the running mean itself. Its input is detached: errors of a
    young baseline must not move the policy's features. Our own, as TRL's value-head model is gone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        values: Tensor = self.out(self.norm(hidden_ND.detach().float())).squeeze(-1)
        return values


@dataclass
class Judged:
    """What the present policy says of one rollout's free tokens: logits as sampled from, and values."""

    logits_FV: Tensor
    values_F: Tensor


class Network:
    """Base, adapter and head on one device. `base` is changed in place: LoRA layers are put into it."""

    def __init__(self, base: Any, settings: PolicySettings, device: torch.device) -> None:
        from peft import LoraConfig, get_peft_model

        self.settings, self.device = settings, device
        _refuse_odd_heads(base.config)
        config = LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            target_modules=list(settings.lora_targets),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with seeded(settings.seed):
            try:
                with warnings.catch_warnings():  # peft asks transformers for things that its next version renames
                    warnings.simplefilter("ignore", FutureWarning)
                    self.peft = get_peft_model(base, config, adapter_name=ADAPTER)
            except ValueError as error:
                raise PolicyError(f"policy.lora_targets {settings.lora_targets} do not fit: {error}") from error
            self.head = ValueHead(base.config.hidden_size)
        self.peft.eval()  # no dropout anywhere: sampling and learning must agree
        if settings.quantise == "none":
            _round_once(self.peft)
        self.decoder = base.get_decoder()
        self.unembed = base.get_output_embeddings()
        self.vocab_size = int(base.config.vocab_size)
        self.to(device)

    def to(self, device: torch.device) -> None:
        if self.settings.quantise == "none":  # a quantised base was loaded where it stays
            self.peft.to(device)
        self.head.to(device)
        self.device = device  # last: a move that found no room is done again

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.peft.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off: what remains is the warm-started base, the reference of the KL term."""
        from trl.trainer.utils import use_adapter

        with use_adapter(self.peft, None):
            yield

    # --- passes -------------------------------------------------------------------------------------------------------

    def prefill(self, ids_P: NDArray[np.int64]) -> Any:
        """Return keys and values of all but the last prompt token, without gradients; None for one token."""
        if len(ids_P) < 2:
            return None
        with torch.no_grad():
            ids = torch.as_tensor(ids_P[None, :-1], device=self.device)
            return self.decoder(input_ids=ids, use_cache=True).past_key_values

    def logits(self, hidden_ND: Tensor) -> Tensor:
        logits_NV: Tensor = self.unembed(hidden_ND).float()
        return logits_NV

    def judge(self, rollouts: Sequence[Rollout]) -> list[Judged]:
        """Return logits and values at the free tokens of rollouts of one prompt; gradients as enabled outside."""
        prompt = rollouts[0].prompt_ids
        assert all(np.array_equal(r.prompt_ids, prompt) for r in rollouts), "rollouts of one prompt"
        learned = self.settings.prompt_grad and torch.is_grad_enabled()
        cache, cached = (None, 0) if learned else (self.prefill(prompt), len(prompt) - 1)
        rows = [torch.as_tensor(r.completion_ids[:-1], device=self.device) for r in rollouts]
        prefix = torch.as_tensor(prompt[cached:], device=self.device)
        hidden = behind(self.decoder, cache, cached, prefix, rows)
        return [self._judge_row(*both) for both in zip(hidden, rollouts, strict=True)]

    def _judge_row(self, hidden_TD: Tensor, rollout: Rollout) -> Judged:
        free = torch.as_tensor(np.flatnonzero(rollout.free_T), device=self.device)
        hidden_FD = hidden_TD[free]
        allowed_FV = np.unpackbits(rollout.masks_FB, axis=1, count=self.vocab_size, bitorder="little").astype(bool)
        allowed = torch.as_tensor(allowed_FV, device=self.device)
        temperatures_F1 = torch.as_tensor(rollout.temperatures_F[:, None], device=self.device)
        return Judged(masked(self.logits(hidden_FD), allowed, temperatures_F1), self.head(hidden_FD))


def _round_once(peft: Any) -> None:
    """Compute the layers that carry the adapter in float32, the base's part too, and round the sum to the base's type.

    PEFT rounds twice: the base's product is on the grid already when the adapter's is added, and after one Adam step of 2e-4
    most sums round back to where they were.
    """
    from peft.tuners.lora import LoraLayer

    tied = getattr(peft.get_input_embeddings(), "weight", None)
    for layer in peft.modules():
        if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
            continue
        base, dtype = layer.get_base_layer(), layer.get_base_layer().weight.dtype
        # Tied to what the first layer looks up, it keeps that one's type.
        if dtype != torch.float32 and base.weight is not tied:
            base.float()
            layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0].float(), *inputs[1:]))
            layer.register_forward_hook(lambda _layer, _inputs, out, dtype=dtype: out.to(dtype))


def _refuse_odd_heads(config: Any) -> None:
    """Refuse models that change logits after the last layer: sampling here would miss that."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise PolicyError(f"models with {name} are not supported; choose another policy.model")
