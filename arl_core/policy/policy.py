"""The policy: a language model that proposes edits and learns from their rewards.

policy = Policy.load(settings, data_dir, say)
rollout = policy.propose(prompt, source, seed)      # one edit, valid by construction
metrics = policy.update([rollout, ...], [reward, ...])
digest = policy.save(folder); policy.restore(folder, digest)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arl_core.errors import PolicyError
from arl_core.policy import checkpoint, ppo, weights
from arl_core.policy.decoder import Vocabulary
from arl_core.policy.network import Network
from arl_core.policy.proposers import Choose, in_order
from arl_core.policy.rollout import Rollout
from arl_core.policy.room import when_there_is_room
from arl_core.policy.sampler import sample
from arl_core.policy.seeded import seeded
from arl_core.policy.settings import PolicySettings

ADAM_EPS = 1e-5


class Policy:
    """A model, its adapter, its value head and its optimizer. Use `load`; one owner, not thread-safe."""

    def __init__(self, base: Any, tokenizer: Any, settings: PolicySettings, device: torch.device) -> None:
        self.settings, self.tokenizer, self.home = settings, tokenizer, device
        self.say: Callable[[str], None] = lambda _line: None  # told of long waits
        self.network = Network(base, settings, device)
        self.vocabulary = Vocabulary(tokenizer, self.network.vocab_size)
        self.statistics = ppo.Statistics()
        self.recent: list[tuple[Rollout, float]] = []
        adapter = self.network.adapter_parameters()
        head = {f"head.{name}": p for name, p in self.network.head.named_parameters()}
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(adapter.values()), "lr": settings.learning_rate},
                {"params": list(head.values()), "lr": settings.value_learning_rate},
            ],
            eps=ADAM_EPS,
        )
        self._begun_from = weights.begun_from(settings)
        self._parameters = {**adapter, **head}
        self._names = {id(p): name for name, p in self._parameters.items()}

    @classmethod
    def load(cls, settings: PolicySettings, data_dir: Path, say: Callable[[str], None] = lambda _: None) -> Policy:
        """Return a policy ready to propose. Fetches and converts the embedded weights when they are not there.

        Raises PolicyError (weights, adapter or device do not fit), DataMissing or ManifestError (fetch).
        """
        torch.set_num_threads(settings.threads)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise PolicyError("policy.device is cuda, but torch sees no GPU; set policy.device to auto or cpu")
        use_gpu = settings.device != "cpu" and torch.cuda.is_available()
        base, tokenizer = weights.load_base(settings, data_dir, say)
        _refuse_long(settings, base.config)
        base.requires_grad_(False)
        warm = weights.adapter_folder(settings)
        if warm is not None:
            base = weights.merge_warm_start(base, warm)
        policy = cls(base, tokenizer, settings, torch.device("cuda" if use_gpu else "cpu"))
        policy.say = say
        return policy

    # --- proposing ----------------------------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text takes, special tokens left out: what the prompt is fitted with."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, prompt: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the token ids of a prompt, [P]. P ≤ prompt_tokens, and the chat template's own; a longer one loses its middle."""
        if not prompt:
            raise PolicyError("the prompt is empty; build it with arl_core.prompt")
        limit = self.settings.prompt_tokens
        if self.settings.chat:
            limit += self.count_tokens(self._as_message(""))  # prompts are fitted without it
            prompt = self._as_message(prompt)
        ids = np.array(self.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int64)
        if len(ids) > limit:
            ids = np.concatenate([ids[: limit // 2], ids[len(ids) - (limit - limit // 2) :]])
        return ids

    def _as_message(self, text: str) -> str:
        message = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def rehearse(self, source: str, seed: int) -> None:
        """Propose once and forget it: what the model or the device lacks shows before anything is trained."""
        self.propose("a rehearsal", source, seed)

    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
        """Return one edit of `source`. Raises PolicyError when the source offers nothing to edit."""
        return self.propose_many([prompt], [source], [seed], choose)[0]

    def propose_many(
        self, prompts: Sequence[str], sources: Sequence[str], seeds: Sequence[int], choose: Choose = in_order
    ) -> list[Rollout]:
        """Return one edit per prompt; equal prompts share their prefill and are decoded together.

        With `choices` above 1, that many edits are sampled for each, and `choose` says which of all of them are returned:
        one for each seed, not necessarily of its own prompt.
        """
        torch.set_num_threads(self.settings.threads)
        many = self.settings.choices
        owners = [i for i in range(len(seeds)) for _ in range(many)]
        ids = [self.encode(prompt) for prompt in prompts]

        def sampled() -> list[Rollout]:
            self.to_device()
            with seeded(next(iter(seeds), 0), self.network.device):
                return sample(
                    self.network,
                    self.vocabulary,
                    [prompts[i] for i in owners],
                    [ids[i] for i in owners],
                    [sources[i] for i in owners],
                    [(seeds[i] * many + k % many) % 2**31 for k, i in enumerate(owners)],
                )

        rollouts = when_there_is_room(sampled, "proposed", self.say)
        rollouts = [replace(rollout, policy_version=self.statistics.version) for rollout in rollouts]
        if many == 1:
            return rollouts
        return [rollouts[place] for place in choose(rollouts, seeds)]

    # --- learning -----------------------------------------------------------------------------------------------------

    def update(self, rollouts: Sequence[Rollout], rewards: Sequence[float]) -> dict[str, float]:
        """Improve the policy by PPO and return every metric (docs/metrics.md). Rewards are finite, one per rollout."""
        if not rollouts or len(rollouts) != len(rewards):
            raise ValueError(f"an update needs as many rewards as rollouts, got {len(rewards)} for {len(rollouts)}")
        if not np.isfinite(rewards).all():
            raise ValueError(f"rewards must be finite, got {list(rewards)}")
        torch.set_num_threads(self.settings.threads)
        started = time.monotonic()
        fresh = list(zip(rollouts, map(float, rewards), strict=True))

        def updated() -> tuple[dict[str, float], list[Rollout]]:
            self.to_device()
            with seeded(self.settings.seed + self.statistics.version, self.network.device):
                return ppo.update(self.network, self.optimizer, self.statistics, fresh, self.recent, self.settings)

        metrics, learned = when_there_is_room(updated, "learned", self.say)
        fresh = [(rollout, reward) for rollout, (_, reward) in zip(learned, fresh, strict=True)]
        keep = self.settings.reuse_edits
        self.recent = (self.recent + fresh)[-keep:] if keep else []
        return {**metrics, "update_seconds": time.monotonic() - started}

    # --- keeping ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> str:
        """Write all that continues this policy bit for bit, atomically; return the checkpoint's sha256 digest."""
        tensors: dict[str, torch.Tensor] = {f"parameter/{name}": p for name, p in self._parameters.items()}
        tensors |= checkpoint.optimizer_tensors(self.optimizer, self._names)
        state = {
            "statistics": asdict(self.statistics),
            "recent_rewards": [reward for _, reward in self.recent],
            "settings": self.settings.model_dump(mode="json"),
            "begun_from": self._begun_from,
        }
        blobs = {f"recent_{i:03}.npz": rollout.to_bytes() for i, (rollout, _) in enumerate(self.recent)}
        return checkpoint.write(folder, tensors, state, blobs)

    def restore(self, folder: Path, digest: str = "") -> None:
        """Continue from a checkpoint. Raises CheckpointDamaged when it is torn or altered, PolicyError when its adapter is one to
        another model, warm start or scale: the same numbers would make another policy, with another reference.
        """
        tensors, state, blobs = checkpoint.read(folder, digest)
        stored = {k.removeprefix("parameter/"): t for k, t in tensors.items() if k.startswith("parameter/")}
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        begun = self._begun_from | state.get("begun_from", {})  # checkpoints of earlier versions do not say
        other = [
            f"{name} ({begun[name]} then, {now} now)" for name, now in self._begun_from.items() if begun[name] != now
        ]
        if other or {name: tuple(t.shape) for name, t in stored.items()} != shapes:
            raise PolicyError(
                f"policy checkpoint {folder} is of another model or adapter{': ' if other else ''}{', '.join(other)}; "
                "keep policy.* and the warm start as the campaign began, or start a new one (--fresh)"
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(stored[name])
        checkpoint.load_optimizer(self.optimizer, tensors, self._names)
        self.statistics = ppo.Statistics(**state["statistics"])
        rollouts = [Rollout.from_bytes(blobs[name]) for name in sorted(blobs)]
        self.recent = list(zip(rollouts, state["recent_rewards"], strict=True))

    def make_room(self) -> None:
        """Leave a candidate the GPU memory that is reserved and not in use; with policy.offload all of it."""
        if self.settings.offload:
            self.to_cpu()
        elif self.network.device.type == "cuda":
            torch.cuda.empty_cache()

    def to_cpu(self) -> None:
        """Leave the GPU to the candidate. Proposing and updating come back by themselves."""
        self._move(torch.device("cpu"))

    def to_device(self) -> None:
        """Come back to the device that the policy was loaded on."""
        self._move(self.home)

    def _move(self, device: torch.device) -> None:
        if self.network.device == device:
            return
        self.network.to(device)
        for slots in self.optimizer.state.values():
            for slot, value in slots.items():
                if slot != "step":
                    slots[slot] = value.to(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refuse_long(settings: PolicySettings, config: Any) -> None:
    """Refuse prompts that a model has no positions for: it would go on, and answer nonsense."""
    positions = getattr(config, "max_position_embeddings", None)
    wanted = settings.prompt_tokens + settings.max_new_tokens
    if positions is not None and wanted > positions:
        raise PolicyError(
            f"policy.prompt_tokens + policy.max_new_tokens is {wanted}, and {settings.model} has {positions} positions; "
            "set a smaller policy.prompt_tokens, or a policy.model with a longer context"
        )
