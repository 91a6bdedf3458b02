"""Edits are valid by construction, whatever the weights say."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from arl_core.errors import PolicyError
from arl_core.policy.policy import Policy
from arl_core.policy.rollout import Rollout
from tests.arl_core.policy.conftest import PROMPT, SOURCE


@pytest.fixture(scope="module")
def rollouts(shared_policy: Policy) -> list[Rollout]:
    return shared_policy.propose_many([PROMPT] * 12, [SOURCE] * 12, list(range(12)))


def apply(rollout: Rollout) -> str:
    source = SOURCE
    for block in rollout.blocks:
        assert ("\n" + source).count("\n" + block.search) == 1
        source = ("\n" + source).replace("\n" + block.search, "\n" + block.replace, 1)[1:]
    return source


def test_an_untrained_policy_writes_edits_that_apply_and_parse(rollouts: list[Rollout]) -> None:
    ended = [r for r in rollouts if r.ended]
    assert len(ended) >= 9  # the others were still writing names when their tokens ran out
    for rollout in ended:
        assert rollout.blocks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(apply(rollout))


def test_no_edit_is_void(rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        for block in rollout.blocks:
            assert block.search.strip() != block.replace.strip()


def test_the_completion_spells_the_blocks(rollouts: list[Rollout]) -> None:
    for rollout in (r for r in rollouts if r.ended):
        spelled = "".join(f"<<<<<<< SEARCH\n{b.search}=======\n{b.replace}>>>>>>> REPLACE\n" for b in rollout.blocks)
        assert rollout.completion == spelled


def test_forced_tokens_carry_no_log_probability(rollouts: list[Rollout]) -> None:
    for r in rollouts:
        assert r.logprobs_T.shape == r.values_T.shape == r.free_T.shape == r.completion_ids.shape
        assert len(r.masks_FB) == r.free_T.sum()
        assert not r.logprobs_T[~r.free_T].any()
        assert (r.logprobs_T[r.free_T] <= 0).all()


def test_every_sampled_token_was_allowed_and_none_of_them_alone(rollouts: list[Rollout]) -> None:
    for r in rollouts:
        allowed = np.unpackbits(r.masks_FB, axis=1, bitorder="little")
        assert allowed[np.arange(len(allowed)), r.completion_ids[r.free_T]].all()
        assert (allowed.sum(axis=1) > 1).all()


def test_the_same_seed_gives_the_same_edit_alone_or_in_company(shared_policy: Policy, rollouts: list[Rollout]) -> None:
    alone = shared_policy.propose(PROMPT, SOURCE, seed=3)
    assert alone.completion == rollouts[3].completion
    assert alone.logprobs_T == pytest.approx(rollouts[3].logprobs_T, abs=1e-4)
    assert alone.completion != rollouts[4].completion


def test_ratios_start_at_one(shared_policy: Policy, rollouts: list[Rollout]) -> None:
    """Log-probabilities under the masks, taken again with one forward pass, are those that were sampled."""
    with torch.no_grad():
        judged = shared_policy.network.judge(rollouts)
    for rollout, says in zip(rollouts, judged, strict=True):
        actions = torch.from_numpy(rollout.completion_ids[rollout.free_T])
        again = says.logits_FV.log_softmax(-1).gather(1, actions[:, None])[:, 0].numpy()
        assert np.abs(again - rollout.logprobs_T[rollout.free_T]).max() < 1e-4
        assert np.abs(says.values_F.numpy() - rollout.values_T[rollout.free_T]).max() < 1e-4


def test_a_rollout_survives_the_disk(rollouts: list[Rollout]) -> None:
    first = rollouts[0]
    again = Rollout.from_bytes(first.to_bytes())
    for name in ("prompt", "completion", "blocks", "ended", "seed", "seconds", "notes"):
        assert getattr(again, name) == getattr(first, name)
    for name in ("prompt_ids", "completion_ids", "free_T", "logprobs_T", "values_T", "masks_FB", "temperatures_F"):
        assert np.array_equal(getattr(again, name), getattr(first, name))
        assert getattr(again, name).dtype == getattr(first, name).dtype


def test_a_torn_rollout_is_named_as_such(rollouts: list[Rollout]) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        Rollout.from_bytes(rollouts[0].to_bytes()[:-40])


def test_a_long_prompt_loses_its_middle(load: Callable[..., Policy]) -> None:
    policy = load(prompt_tokens=64)
    ids = policy.encode("begin " + "x " * 500 + " end")
    assert len(ids) == 64
    assert policy.tokenizer.decode(ids).startswith("begin")
    assert policy.tokenizer.decode(ids).endswith("end")


def test_a_chat_template_costs_the_prompt_nothing(load: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(prompt_tokens=64, chat=True)

    def template(message: list[dict[str, str]], **_: object) -> str:
        return f"<user>{message[0]['content']}<answer>"

    monkeypatch.setattr(policy.tokenizer, "apply_chat_template", template)
    words = "LEARNING_RATE\n" * 64
    while policy.count_tokens(words) > 64:
        words = words[:-1]
    assert policy.tokenizer.decode(policy.encode(words)) == f"<user>{words}<answer>"
    assert len(policy.encode(words * 2)) == 64 + policy.count_tokens("<user><answer>")


def test_free_text_is_bounded_too(load: Callable[..., Policy]) -> None:
    rollout = load(replace="text", max_replace_lines=2, max_new_tokens=400).propose(PROMPT, SOURCE, seed=1)
    assert all(block.replace.count("\n") <= 2 for block in rollout.blocks)


def test_an_edit_whose_search_takes_all_tokens_ends_there(load: Callable[..., Policy]) -> None:
    source = f"x = ({' + '.join(str(one) for one in range(1000, 1020))})\n"
    rollout = load(max_new_tokens=96).propose(PROMPT, source, seed=0)
    assert not rollout.ended
    assert len(rollout.completion_ids) >= 96
    assert len(rollout.masks_FB) == rollout.free_T.sum() == 0


@pytest.mark.parametrize("source", ["", "f(\n", '"""Only prose."""\n'])
def test_a_source_without_anything_to_edit_is_a_clear_error(shared_policy: Policy, source: str) -> None:
    with pytest.raises(PolicyError, match="source to edit"):
        shared_policy.propose(PROMPT, source, seed=0)


def test_where_to_edit_and_what_to_write_have_temperatures_of_their_own_and_ppo_sees_both(
    load: Callable[..., Policy],
) -> None:
    """Cold writing, hot searching; the learner's log-probabilities are still those that were sampled."""
    policy = load(temperature=0.5, search_temperature=1.5)
    many = policy.propose_many([PROMPT] * 4, [SOURCE] * 4, range(4))
    for rollout, says in zip(many, policy.network.judge(many), strict=True):
        assert set(rollout.temperatures_F.tolist()) == {0.5, 1.5}
        assert rollout.temperatures_F[0] == 1.5
        actions = torch.from_numpy(rollout.completion_ids[rollout.free_T])
        learner = says.logits_FV.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        assert np.abs(learner.detach().numpy() - rollout.logprobs_T[rollout.free_T]).max() < 1e-4
