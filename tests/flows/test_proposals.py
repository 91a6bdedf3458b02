"""What a campaign tells its policy about edits: which are valid and new, among those tried and those under way."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from arl_core.config import load_config
from arl_core.memory import Memory
from arl_core.policy import choice
from arl_core.policy.rollout import EditBlock, Rollout
from arl_core.records import Campaign, Experiment, State, source_hash
from flows import iteration
from tasks.propose import fitted_critic

SOURCE = "DEPTH = 4\nWIDTH = 64\n\n\ndef build_model():\n    return DEPTH\n"


def edit(search: str, replace: str) -> Rollout:
    return Rollout.foreign("prompt", f"{search}{replace}", 0, (EditBlock(search, replace),))


NEW = edit("DEPTH = 4\n", "DEPTH = 5\n")
TRIED = edit("WIDTH = 64\n", "WIDTH = 96\n")
RUNNING = edit("WIDTH = 64\n", "WIDTH = 32\n")
BROKEN = edit("DEPTH = 4\n", "DEPTH = (\n")
POOL = [TRIED, RUNNING, BROKEN, NEW]


class Sampler:
    """A policy that samples POOL and returns what it is told to."""

    def count_tokens(self, text: str) -> int:
        return len(text)

    def propose(self, prompt, source, seed, choose):
        return POOL[choose(POOL, [seed])[0]]

    def propose_many(self, prompts, sources, seeds, choose):
        return [POOL[place] for place in choose(POOL, seeds)]


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A campaign whose incumbent is SOURCE and in which TRIED was tried."""
    for name in ("patch", "propose", "propose_many"):
        monkeypatch.setattr(iteration, name, getattr(iteration, name).fn)
    monkeypatch.setattr(iteration, "make_prompt", lambda *_: SimpleNamespace(text="prompt"))
    memory = Memory(tmp_path / "memory.duckdb")
    campaign = Campaign("c", "embedded", {}, "digest", 0, "2026-11-24T00:00:00+00:00", "text")
    memory.create_campaign(campaign)
    for index, source in enumerate((SOURCE, SOURCE.replace("64", "96"))):
        status = "discarded" if index else "kept"
        known = {"value": 1.0 + index, "source": source, "source_hash": source_hash(source)}
        memory.commit_iteration(Experiment("c", index, status, **known), State())
    yield SimpleNamespace(
        campaign=campaign,
        config=load_config("embedded", {"policy.choices": 4}),
        display=SimpleNamespace(phase=lambda _: None, candidate=lambda _: None),
        policy=Sampler,
        memory=memory,
        policy_step=0,
        after_commit=None,
    )
    memory.close()


@pytest.mark.parametrize("indices", [[2], [2, 3]], ids=["one", "a batch"])
def test_a_policy_that_chooses_knows_what_is_valid_and_new(session, indices):
    proposals = iteration.propose_edits(session, indices, {source_hash(SOURCE.replace("64", "32"))})
    assert [one.index for one in proposals] == indices
    assert proposals[0].rollout is NEW
    assert proposals[0].edit.runs


def test_what_runs_on_another_slot_is_only_known_when_it_is_said(session):
    proposals = iteration.propose_edits(session, [2, 3])
    assert {id(one.rollout) for one in proposals} == {id(RUNNING), id(NEW)}


def test_a_policy_that_samples_one_edit_for_each_experiment_is_given_no_critic(session):
    session.config = load_config("embedded")
    (proposal,) = iteration.propose_edits(session, [2])
    assert proposal.rollout is TRIED


def test_by_turns_the_incumbents_program_and_the_critics_favourite_are_edited(session, monkeypatch):
    """Each under a prompt of its own; the reward still compares with the incumbent."""
    session.config = load_config("embedded", {"policy.choices": 4, "policy.parents": "by_turns"})
    monkeypatch.setattr(iteration, "make_prompt", lambda *given: SimpleNamespace(text=f"prompt of #{given[4].index}"))
    monkeypatch.setattr(choice, "favourite", lambda memory, campaign, _critic: memory.experiment(campaign.id, 1))

    def propose_many(self, prompts, sources, seeds, choose):
        assert sources == [SOURCE, SOURCE.replace("64", "96")]
        return [replace(NEW, prompt=prompt) for prompt in prompts]

    monkeypatch.setattr(Sampler, "propose_many", propose_many)
    even, odd = iteration.propose_edits(session, [2, 3])
    assert (even.parent_index, odd.parent_index) == (0, 1)
    assert (even.incumbent_value, odd.incumbent_value) == (1.0, 1.0)
    assert "WIDTH = 64" in even.edit.source
    assert "WIDTH = 96" in odd.edit.source
    assert [even.rollout.prompt, odd.rollout.prompt] == ["prompt of #0", "prompt of #1"]


@pytest.mark.parametrize("proposer", ["random", "none"])
def test_a_control_is_not_guided_by_a_critic(session, proposer):
    settings = {"policy.choices": 4, "policy.parents": "by_turns", "policy.proposer": proposer}
    assert fitted_critic(session.memory, session.campaign, load_config("embedded", settings)) is None


@pytest.mark.parametrize("proposer", ["policy", "random_critic"])
def test_who_samples_several_edits_for_the_critic_is(session, proposer):
    settings = {"policy.choices": 4, "policy.proposer": proposer}
    critic = fitted_critic(session.memory, session.campaign, load_config("embedded", settings))
    assert critic is not None
    assert not critic.ready, "of two experiments"
