"""A policy continues from the disk bit for bit, and a torn checkpoint is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from arl_core.errors import PolicyError
from arl_core.policy import checkpoint
from arl_core.policy.policy import Policy
from arl_core.policy.settings import PolicySettings
from arl_core.policy.weights import begun_from
from tests.arl_core.policy.conftest import PROMPT, SOURCE, tiny

Load = Callable[..., Policy]
REWARDS = [1.0, -0.6, 0.2]


def learn(policy: Policy, seed: int) -> None:
    rollouts = policy.propose_many([PROMPT] * 3, [SOURCE] * 3, [seed, seed + 1, seed + 2])
    policy.update(rollouts, REWARDS)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy._parameters.items()}


def test_a_restored_policy_continues_bit_for_bit(load: Load, tmp_path: Path) -> None:
    policy = load(reuse_edits=2)
    learn(policy, 0)
    digest = policy.save(tmp_path / "one")
    learn(policy, 10)

    other = load(reuse_edits=2)
    other.restore(tmp_path / "one", digest)
    learn(other, 10)
    assert other.statistics == policy.statistics
    for name, tensor in weights(policy).items():
        assert torch.equal(tensor, weights(other)[name]), name


def test_a_model_that_draws_from_torchs_global_generator_draws_the_same_in_another_process(load: Load) -> None:
    """Another process begins with another global state: PyTorch takes it from the operating system."""

    def proposed_and_learned(global_seed: int) -> tuple[list[str], dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(global_seed)
        policy = load()
        policy.network.decoder.norm.register_forward_hook(lambda *call: call[2] + torch.randn_like(call[2]))
        rollouts = policy.propose_many([PROMPT] * 3, [SOURCE] * 3, [0, 1, 2])
        policy.update(rollouts, REWARDS)
        return [rollout.completion for rollout in rollouts], weights(policy), torch.rand(3)

    mine, theirs = proposed_and_learned(1), proposed_and_learned(2)
    assert mine[0] == theirs[0]
    for name, tensor in mine[1].items():
        assert torch.equal(tensor, theirs[1][name]), name
    torch.manual_seed(1)
    assert torch.equal(mine[2], torch.rand(3))  # and the process's own draws are left alone


def test_the_same_state_has_the_same_digest_and_another_state_another(load: Load, tmp_path: Path) -> None:
    policy = load()
    first, second = policy.save(tmp_path / "a"), policy.save(tmp_path / "b")
    assert first == second
    learn(policy, 0)
    assert policy.save(tmp_path / "a") != first  # replaced as a whole
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_checkpoint_with_the_random_states_that_were_saved_once_is_restored(load: Load, tmp_path: Path) -> None:
    policy = load()
    learn(policy, 0)
    policy.save(tmp_path / "now")
    tensors, state, blobs = checkpoint.read(tmp_path / "now")
    tensors["random/cpu"] = torch.get_rng_state()
    digest = checkpoint.write(tmp_path / "then", tensors, state | {"python_random": [3, [1, 2], None]}, blobs)
    other = load()
    other.restore(tmp_path / "then", digest)
    learn(policy, 10)
    learn(other, 10)
    for name, tensor in weights(policy).items():
        assert torch.equal(tensor, weights(other)[name]), name


@pytest.mark.parametrize(("change", "words"), [({"lora_alpha": 64}, r"policy.lora_alpha \(16 then, 64 now\)")])
def test_a_checkpoint_of_another_scale_is_refused_though_its_numbers_would_fit(
    load: Load, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    digest = load().save(tmp_path / "one")
    with pytest.raises(PolicyError, match=words):
        load(**change).restore(tmp_path / "one", digest)


def test_a_checkpoint_over_another_warm_start_is_refused_and_one_that_does_not_say_is_taken(
    load: Load, tmp_path: Path
) -> None:
    policy = load()
    policy._begun_from["warm start"] = "another"
    digest = policy.save(tmp_path / "one")
    with pytest.raises(PolicyError, match=r"warm start \(another then, none now\); keep policy"):
        load().restore(tmp_path / "one", digest)
    tensors, state, blobs = checkpoint.read(tmp_path / "one")
    del state["begun_from"]
    load().restore(tmp_path / "then", checkpoint.write(tmp_path / "then", tensors, state, blobs))


def test_warm_starts_of_other_weights_or_another_scale_and_other_models_are_told_apart(tmp_path: Path) -> None:
    def told(weights: bytes, alpha: int, model: str = "tiny-random") -> dict[str, object]:
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
        return begun_from(tiny(adapter=str(tmp_path), model=model))

    assert told(b"one", 16) == told(b"one", 16)
    assert len({str(told(*what)) for what in ((b"one", 16), (b"two", 16), (b"one", 32), (b"one", 16, "other"))}) == 4


def test_prompts_beyond_the_models_positions_are_refused(load: Load) -> None:
    with pytest.raises(
        PolicyError, match=r"is 2049, and tiny-random has 2048 positions; set a smaller policy.prompt_tokens"
    ):
        load(prompt_tokens=2049 - 192)
    load(prompt_tokens=2048 - 192)


@pytest.mark.parametrize("victim", ["policy.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["torn", "missing"])
def test_a_damaged_checkpoint_is_refused(load: Load, tmp_path: Path, victim: str, harm: str) -> None:
    policy = load()
    digest = policy.save(tmp_path / "c")
    file = tmp_path / "c" / victim
    data = file.read_bytes()
    file.unlink()
    if harm == "torn":
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(PolicyError, match="policy checkpoint"):
        policy.restore(tmp_path / "c", digest)


def test_a_checkpoint_that_the_memory_did_not_record_is_refused(load: Load, tmp_path: Path) -> None:
    policy = load()
    policy.save(tmp_path / "d")
    with pytest.raises(PolicyError, match="not the one"):
        policy.restore(tmp_path / "d", "0" * 64)


def test_a_checkpoint_of_another_adapter_is_refused(load: Load, tmp_path: Path) -> None:
    load(lora_r=8).save(tmp_path / "e")
    with pytest.raises(PolicyError, match="another model or adapter"):
        load(lora_r=4).restore(tmp_path / "e")


def test_a_folder_that_cannot_be_written_is_a_clear_error(load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PolicyError, match="cannot write"):
        load().save(tmp_path / "file" / "inside")


def test_settings_that_do_not_fit_are_clear_errors(load: Load, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="lora_targets"):
        load(lora_targets=("no_such_layer",))
    with pytest.raises(PolicyError, match="adapter_config"):
        load(adapter=str(tmp_path))
    if not torch.cuda.is_available():
        with pytest.raises(PolicyError, match="no GPU"):
            load(device="cuda")
    with pytest.raises(PolicyError, match="cannot load"):
        load(model=str(tmp_path))


def test_moving_away_and_back_changes_nothing(load: Load) -> None:
    policy = load()
    before = weights(policy)
    policy.to_cpu()
    policy.to_device()
    assert all(torch.equal(before[name], p) for name, p in weights(policy).items())


def test_settings_of_a_campaign_that_was_begun_with_one_that_is_gone_are_read() -> None:
    """`top_p` could only be 1; stored campaigns say so, and must go on."""
    stored = tiny().model_dump(mode="json") | {"top_p": 1.0}
    assert PolicySettings.model_validate(stored) == tiny()
    with pytest.raises(ValidationError, match="nonsense"):
        PolicySettings.model_validate(stored | {"nonsense": 1})
