"""The campaign: a sequence of experiments, each proposed, run, rewarded, remembered.

python -m flows.research --preset embedded --iterations 8
python -m flows.research --preset embedded --resume latest --iterations 16
python -m flows.research --preset embedded --set environment.budget_s=10 --set seed=3
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow

from arl_core.config import CampaignConfig, load_config, parse_overrides, preset_names
from arl_core.outcome import Outcome, settle
from arl_core.records import Experiment, source_hash, utc_now
from arl_core.second_look import reference
from arl_core.stopping import stopping_snapshot
from flows.confirm import measure_floor, paid_for, second_look
from flows.costs import Costs
from flows.session import Session, open_session, preflight, resumed_config
from flows.summary import print_summary
from flows.surroundings import ROOT
from frozen_env.contract import Cause, ResearchError, RunResult, Status
from tasks.commit import commit
from tasks.patch import Patch, patch
from tasks.prompt import make_prompt
from tasks.propose import propose
from tasks.reward import make_reward
from tasks.track import prepare, track, track_campaign
from tasks.train import train
from tasks.update import checkpoint, update


@flow(name="research", log_prints=False, persist_result=False, validate_parameters=False)
def research(
    preset: str = "overnight",
    iterations: int | None = None,
    resume: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a campaign to its last iteration and return its id, its best value and the experiments by status.

    `settings` are dotted overrides, e.g. {"environment.budget_s": 20}. `resume` is a campaign id or "latest": its own
    settings then hold, and those that would make its experiments incomparable cannot be overridden.
    """
    config = configure(preset, iterations, resume, settings or {})
    with open_session(config, resume) as session, _tracked(session):
        first = session.memory.next_index(session.campaign.id)
        began_s = time.monotonic()
        for index in range(first, config.iterations + 1):
            if config.stop.hours is not None and time.monotonic() - began_s > 3600 * config.stop.hours:
                break
            session.display.begin(index, config.iterations)
            experiment = run_seed(session) if index == 0 else run_iteration(session, index)
            session.display.settled(experiment, session.memory.incumbent(session.campaign.id))
            session.show(index)
    return print_summary(session.memory, session.campaign.id, session.folder)


def configure(preset: str, iterations: int | None, resume: str | None, settings: dict[str, Any]) -> CampaignConfig:
    """Return the campaign's settings. Raises ConfigError that names what is wrong."""
    overrides = settings | ({} if iterations is None else {"iterations": iterations})
    config = load_config(preset, overrides)
    return resumed_config(config.memory, resume, overrides) if resume else config


@contextmanager
def _tracked(session: Session) -> Iterator[None]:
    """Open MLflow in the background, and bring it in line with the memory at the end, however that comes."""
    if not session.config.tracking:
        yield
        return
    prepare(session.runs_folder)
    status = "failed"
    try:
        yield
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        session.display.phase("bringing MLflow in line")
        campaign = dataclasses.replace(session.campaign, status=status)
        track_campaign(campaign, session.memory.experiments(campaign.id), session.folder)


def run_seed(session: Session) -> Experiment:
    """Experiment 0: the untouched target with the preset's constants. It needs no proposal."""
    source = (session.folder / "seed_train.py").read_text(encoding="utf-8")
    session.display.candidate("the untouched target")
    costs = Costs(session.after_commit)
    program = source_hash(source)
    result = paid_for(session, program) or _train(session, source, 0, costs)
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
    campaign, config, display = session.campaign, session.config, session.display
    costs = Costs(session.after_commit)
    incumbent = session.memory.incumbent(campaign.id)
    if incumbent is None:
        raise ResearchError(f"campaign {campaign.id} has no scored experiment to start from; start a new one")
    with costs.timed("load_policy"):
        policy = session.policy()
    display.phase("proposing")
    with costs.timed("prompt"):
        prompt = make_prompt(session.memory, campaign, config, incumbent, index, policy.count_tokens, ROOT)
    with costs.timed("propose"):
        rollout = propose(policy, prompt.text, incumbent.source, seed_of(config, index))
    with costs.timed("patch"):
        edit = patch(incumbent.source, rollout, config.edit, session.memory, campaign.id)
    display.candidate(edit.summary or edit.reason)
    program, bar = source_hash(edit.source) if edit.source else "", reference(incumbent)
    result = (paid_for(session, program) or _train(session, edit.source, index, costs)) if edit.runs else None
    outcome = settle(result, bar, campaign.direction) if result else _refused(edit)
    look = second_look(session, index, edit.source, program, result, outcome, incumbent, costs)
    with costs.timed("reward"):
        rewarded = look.to_reward(bar, campaign.direction)
        terms = make_reward(rewarded, bar, campaign.direction, config.reward)
    if config.policy.learns:
        session.pending.append((rollout, terms["reward"]))
    metrics = _update(session, costs) if len(session.pending) >= config.policy.batch_edits else {}
    experiment = _experiment(
        session,
        index,
        look.outcome,
        result,
        costs,
        parent_index=incumbent.index,
        incumbent_value=bar,
        source=edit.source,
        source_hash=program,
        diff=edit.diff,
        summary=edit.summary,
        repairs=edit.repairs,
        prompt=prompt.text,
        completion=rollout.completion,
        reward=terms["reward"],
        reward_terms=terms,
        policy_step=session.policy_step,
        **look.fields | {"extra": look.fields.get("extra", {}) | ({"update": metrics} if metrics else {})},
    )
    _remember(session, experiment, costs)
    return experiment


def seed_of(config: CampaignConfig, index: int) -> int:
    """The proposal's seed: a function of the campaign's seed and the experiment, so that a resumed one samples the same."""
    return (config.seed * 1_000_003 + index) % 2**31


def _train(session: Session, source: str, index: int, costs: Costs) -> RunResult:
    config, campaign = session.config, session.campaign
    with costs.timed("verdict_snapshot"):
        snapshot = stopping_snapshot(session.memory, campaign, config)
    session.display.phase("starting the candidate")
    with costs.timed("policy_to_cpu"):
        session.make_room()
    with costs.timed("run"):
        result = train(
            session.host,
            source,
            config.seed,
            session.place(index),
            config.stopping.rule,
            snapshot,
            session.display.event,
        )
    costs.parts |= {"startup": result.startup_s, "training": result.training_s, "scoring": result.scoring_s}
    return result


def _refused(edit: Patch) -> Outcome:
    return Outcome(Status.DUPLICATE if edit.duplicate_of is not None else Status.REJECTED, Cause.NONE, edit.reason)


def _update(session: Session, costs: Costs) -> dict[str, float]:
    """PPO on the full batch, then the checkpoint: it is on disk before the memory says so."""
    session.display.phase("updating the policy")
    rollouts, rewards = zip(*session.pending, strict=True)
    with costs.timed("update"):
        metrics = update(session.policy(), rollouts, rewards)
    session.policy_step += 1
    with costs.timed("checkpoint"):
        session.checkpoint = checkpoint(session.policy(), session.policy_folder, session.policy_step)
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
    return Experiment(**(fields | known))


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
    session.after_commit = costs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.research", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded", help=f"one of: {', '.join(preset_names())} (default: embedded)")
    parser.add_argument("--iterations", type=int, help="experiments after experiment 0 (default: the preset's)")
    parser.add_argument("--resume", metavar="ID", help='go on with a campaign: its id, or "latest"')
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; see docs/settings.md"
    )
    options = parser.parse_args(arguments)
    try:
        overrides = parse_overrides(options.set)
        preflight(configure(options.preset, options.iterations, options.resume, overrides), options.resume)
        research(options.preset, options.iterations, options.resume, overrides)
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with: python -m flows.research --resume latest", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
