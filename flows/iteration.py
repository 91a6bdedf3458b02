"""The steps of one experiment: propose, run, conclude. research.py takes them one after the other, parallel.py overlaps them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from arl_core.config import CampaignConfig
from arl_core.diversity import diversity
from arl_core.memory import RECENT
from arl_core.outcome import Outcome, settle
from arl_core.patch import Patch
from arl_core.policy.parents import Shown
from arl_core.records import BEST_AFTER, Experiment, source_hash, utc_now
from arl_core.second_look import best_after, reference, worse_of
from arl_core.stop_conditions import StopConditions
from arl_core.stopping import audit_fields
from flows.blame import check_disk
from flows.confirm import Deposed, Look, measure_floor, paid_for, second_look, settled_by_size
from flows.costs import Costs
from flows.retention import retire
from flows.session import Session
from flows.slots import Order
from flows.surroundings import ROOT
from flows.unsettled import Landed, Proposal
from frozen_env.contract import Cause, ResearchError, RunResult, Status
from tasks import forget_results
from tasks.commit import commit
from tasks.patch import patch
from tasks.prompt import make_prompt
from tasks.propose import choosing, fitted_critic, parents_of, propose, propose_many
from tasks.reward import make_reward
from tasks.track import track
from tasks.update import checkpoint, update


@dataclass(frozen=True)
class Judged:
    """A settled run: what the second look found, and the value of the incumbent that it was compared with."""

    look: Look
    bar: float


def run_seed(session: Session) -> Experiment:
    """Experiment 0: the untouched target with the preset's constants. It needs no proposal."""
    source = (session.folder / "seed_train.py").read_text(encoding="utf-8")
    session.display.candidate("the untouched target")
    session.rehearse(source)
    costs = Costs(session.after_commit)
    program = source_hash(source)
    result = paid_for(session, program) or _run(session, source, 0, costs)
    costs.parts |= _run_costs(result)
    outcome = settle(result, None, session.campaign.direction)
    floor = measure_floor(session, source, program, result, outcome, costs)
    summary = "the untouched target"
    experiment = _experiment(session, 0, outcome, result, costs, source=source, summary=summary, **floor)
    _remember(session, experiment, costs)
    if outcome.value is None:
        raise ResearchError(
            f"the untouched target did not give a score ({outcome.cause}: {outcome.reason}); "
            f"see {session.place(0) / 'log.txt'}, mend {session.config.source} and start again"
        )
    return experiment


def run_iteration(session: Session, index: int) -> Experiment:
    """One edit: prompt, propose, patch, train, reward, update, commit, track."""
    (proposal,) = propose_edits(session, [index])
    result = _run(session, proposal.edit.source, index, proposal.costs) if proposal.edit.runs else None
    return settle_run(session, proposal, result)


def settle_run(session: Session, proposal: Proposal, result: RunResult | None) -> Experiment:
    """Judge a run, with its second look if it needs one, and conclude. It may be one that a killed campaign had ended.

    Raises OutOfTime in the middle of a second look, which then goes on at the next start.
    """
    judged = judge_at_once(session, proposal, result)
    if judged is None:
        assert result is not None
        session.keep(Landed(proposal, result))
        judged = look_at(session, proposal, result)
    return conclude(session, proposal, result, judged)


def propose_edits(session: Session, indices: Sequence[int], under_way: Collection[str] = ()) -> list[Proposal]:
    """Sample one edit per index from the present state, in one batch, and apply each to its parent: the incumbent, or who else
    policy.parents says.

    `under_way`: hashes of the programs that run now, which the memory does not know yet. The seconds of prompt and
    proposal are shared out evenly.
    """
    campaign, config, memory, display = session.campaign, session.config, session.memory, session.display
    problem = config.problem()
    costs = Costs(session.after_commit)
    incumbent = _present(session)
    with costs.timed("load_policy"):
        policy = session.policy()
    display.phase("proposing")
    with costs.timed("propose"):
        critic = fitted_critic(memory, campaign, config)
        edited = parents_of(memory, campaign, config, critic, incumbent, indices)
    with costs.timed("prompt"):
        shown = Shown.of(
            edited,
            lambda one: (
                make_prompt(memory, campaign, config, incumbent, one, indices[0], policy.count_tokens, ROOT).text
            ),
        )
    seeds = [seed_of(config, index) for index in indices]
    with costs.timed("propose"):
        choose = choosing(memory, campaign, config, critic, shown.parents, under_way)
        if len(seeds) == 1:
            rollouts = [propose(policy, shown.prompts[0], shown.sources[0], seeds[0], choose)]
        else:
            rollouts = propose_many(policy, shown.prompts, shown.sources, seeds, choose)
    proposals = []
    for index, rollout, share in zip(indices, rollouts, costs.shared(len(seeds)), strict=True):
        parent = shown.parents[rollout.prompt]
        with share.timed("patch"):
            edit = patch(parent.source, rollout, config.edit, memory, campaign.id, problem)
        display.candidate(edit.summary or edit.reason)
        bar = reference(incumbent)
        proposals.append(Proposal(index, parent.index, bar, rollout, edit, session.policy_step, share))
    return proposals


def order(session: Session, source: str, index: int, costs: Costs) -> Order:
    """Return all that a candidate needs to run, wherever that is. Raises ConfigError when the disk is full."""
    config = session.config
    check_disk(session.folder, config.environment)
    with costs.timed("verdict_snapshot"):
        snapshot = session.history.snapshot(index)
    return Order(index, source, config.seed, session.place(index), config.stopping.rule, snapshot, blamed=index > 0)


def judge_at_once(session: Session, proposal: Proposal, result: RunResult | None) -> Judged | None:
    """Settle a run that needs no second look. None: it looks better than the present incumbent, so re-runs must follow."""
    present = _present(session)
    bar, outcome = _first_look(session, proposal, result, present)
    if outcome.status is Status.KEPT and session.config.confirm.enabled:
        # A gain that needs no run must not wait behind those that do.
        small = settled_by_size(session, source_hash(proposal.edit.source), outcome, present)
        return Judged(small, bar) if small else None
    return Judged(Look(outcome), bar)


def look_at(session: Session, proposal: Proposal, result: RunResult) -> Judged:
    """Settle a run against the present incumbent; one that looks better is run again, in pairs, before it is believed."""
    source = proposal.edit.source
    while True:
        present = _present(session)
        bar, outcome = _first_look(session, proposal, result, present)
        try:
            look = second_look(
                session, proposal.index, source, source_hash(source), result, outcome, present, proposal.costs
            )
            return Judged(look, bar)
        except Deposed as found:
            session.display.say(f"{found}; the best is experiment {_present(session).index} again")


def _first_look(
    session: Session, proposal: Proposal, result: RunResult | None, present: Experiment
) -> tuple[float, Outcome]:
    bar = reference(present)
    if result is None:
        return bar, _refused(proposal.edit)
    session.check_device(proposal.index, result)
    return bar, settle(result, bar, session.campaign.direction)


def conclude(session: Session, proposal: Proposal, result: RunResult | None, judged: Judged) -> Experiment:
    """Reward, learn, commit, track.

    The reward compares with the incumbent of the proposal, or with the present one where that is worse: the other has been found
    out since. What is kept has beaten the present one.
    """
    campaign, config, costs, look = session.campaign, session.config, proposal.costs, judged.look
    edit, rollout = proposal.edit, proposal.rollout
    bar = worse_of(proposal.incumbent_value, judged.bar, campaign.direction)
    if result is not None:
        costs.parts |= _run_costs(result)
    with costs.timed("reward"):
        rewarded = look.to_reward(judged.bar, campaign.direction)
        terms = make_reward(rewarded, bar, campaign.direction, config.reward)
    if config.policy.learns:
        session.pending.append((rollout, terms["reward"]))
    metrics = _update(session, costs) if len(session.pending) >= config.policy.batch_edits else {}
    extra: dict[str, Any] = audit_fields(config, proposal.index) if result is not None else {}
    if metrics:
        extra["update"] = metrics
    # Side by side, the incumbent of the proposal's time may be long gone.
    present, confirmed = reference(_present(session)), look.fields.get("confirmed_value")
    extra[BEST_AFTER] = best_after(present, look.outcome.status, look.outcome.value, confirmed, campaign.direction)
    if proposal.policy_step != session.policy_step - bool(metrics):
        extra["proposed_at_step"] = proposal.policy_step  # the policy has learned while this candidate ran
    experiment = _experiment(
        session,
        proposal.index,
        look.outcome,
        result,
        costs,
        parent_index=proposal.parent_index,
        incumbent_value=bar,
        source=edit.source,
        source_hash=source_hash(edit.source) if edit.source else "",
        diff=edit.diff,
        summary=edit.summary,
        repairs=edit.repairs,
        prompt=rollout.prompt,
        completion=rollout.completion,
        reward=terms["reward"],
        reward_terms=terms,
        policy_step=session.policy_step,
        **look.fields | {"extra": look.fields.get("extra", {}) | extra},
    )
    session.landed.pop(proposal.index, None)
    _remember(session, experiment, costs)
    return experiment


def take_in(session: Session, stop: StopConditions, experiment: Experiment) -> None:
    """Tell who follows the campaign of an experiment that is committed: the limits of this start, the display, Prefect's page."""
    stop.settled(experiment)
    session.display.settled(experiment, session.memory.incumbent(session.campaign.id))
    session.show(experiment.index)


def seed_of(config: CampaignConfig, index: int) -> int:
    """The proposal's seed: a function of the campaign's seed and the experiment, so that a resumed one samples the same."""
    return (config.seed * 1_000_003 + index) % 2**31


def _present(session: Session) -> Experiment:
    incumbent = session.memory.incumbent(session.campaign.id)
    if incumbent is None:
        raise ResearchError(f"campaign {session.campaign.id} has no scored experiment to start from; start a new one")
    return incumbent


def _run(session: Session, source: str, index: int, costs: Costs) -> RunResult:
    job = order(session, source, index, costs)
    session.display.phase("starting the candidate")
    with costs.timed("policy_to_cpu"):
        session.make_room()
    with costs.timed("run"):
        result = session.slots.run(job, session.display.event)
    session.ran(result)
    return result


def _run_costs(result: RunResult) -> dict[str, float]:
    return {"startup": result.startup_s, "training": result.training_s, "scoring": result.scoring_s}


def _refused(edit: Patch) -> Outcome:
    return Outcome(Status.DUPLICATE if edit.duplicate_of is not None else Status.REJECTED, Cause.NONE, edit.reason)


def _update(session: Session, costs: Costs) -> dict[str, float]:
    """PPO on the full batch, then the checkpoint: it is on disk before the memory says so."""
    session.display.phase("updating the policy")
    rollouts, rewards = zip(*session.pending, strict=True)
    with costs.timed("update"):
        metrics = update(session.policy(), rollouts, rewards)
        recent = session.memory.recent(session.campaign.id, RECENT, whole=True)
        metrics |= diversity([one for one in recent if one.index])
    step = session.policy_step + 1
    with costs.timed("checkpoint"):
        name, digest = checkpoint(session.policy(), session.policy_folder, step)
    session.add_checkpoint(name, digest, step)
    session.pending = []
    session.display.updated(metrics)
    return metrics


def _experiment(
    session: Session, index: int, outcome: Outcome, result: RunResult | None, costs: Costs, **known: Any
) -> Experiment:
    campaign = session.campaign
    fields: dict[str, Any] = {
        "campaign_id": campaign.id,
        "index": index,
        "status": outcome.status,
        "cause": outcome.cause,
        "reason": outcome.reason,
        "value": outcome.value,
        "estimate": outcome.estimate,
        "metric": campaign.metric,
        "direction": campaign.direction,
        "costs": costs.finished(),
        "created_at": utc_now(),
        "environment_digest": campaign.environment_digest,
        "seed": session.config.seed,
    }
    if result is not None:
        fields |= {
            "reports": result.reports,
            "verdicts": result.verdicts,
            "log": result.log_tail,
            "tokens": result.tokens_served,
            "peak_memory_mb": result.peak_memory_mb,
            "sandbox": result.sandbox,
        }
    if index == 0:
        fields["source_hash"] = source_hash(known["source"])
    fields |= known
    if result is not None and result.extra:
        fields["extra"] = result.extra | fields.get("extra", {})
    return Experiment(**fields)


def _remember(session: Session, experiment: Experiment, costs: Costs) -> None:
    """Commit, then bring MLflow in line, then tidy up."""
    session.display.phase("remembering")
    with costs.timed("commit"):
        commit(session.memory, experiment, session.state())
    keep = session.config.keep_weights or experiment.status is Status.KEPT
    with costs.timed("track"):
        if session.config.tracking:
            track(session.campaign, experiment, session.folder)
    session.tidy(experiment, keep)
    retire(session, experiment.index)
    session.after_commit = costs
    forget_results()
