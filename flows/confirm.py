"""Sequence of a second look: the noise floor after experiment 0, and the paired re-runs of a candidate that looks better.

Every run is committed as soon as it has ended, and before the next begins; where others wait for their second look, the runs up
to the first decision are done at once, and further pairs on slots that stand idle. What is committed is not run again after
a kill: the re-runs are found by program and seed, the test's level on its first row, and the first run is in the session's
state (unsettled.py).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arl_core.confirm import (
    Arm,
    Decision,
    Judgement,
    Noise,
    next_level,
    next_runs,
    paired_gains,
    seeds_in_order,
    worth_a_second_look,
)
from arl_core.outcome import Outcome, seconds_of, settle
from arl_core.records import Experiment, device_of, utc_now
from arl_core.repeats import Repeat, Repeats, Role
from arl_core.second_look import (
    SPARE_SEEDS,
    Evidence,
    baseline_seeds,
    confirmation_of,
    found_out,
    gain_over,
    mean_of,
    paired_test,
    reference,
    seeds_for,
    settled,
    too_small,
    value_with,
)
from flows.blame import check_disk
from flows.costs import Costs
from flows.session import Session
from flows.slots import Order
from frozen_env.contract import Direction, ResearchError, RunResult, Status
from tasks.repeat import commit_repeat

ROLES = {Arm.CANDIDATE: Role.CANDIDATE, Arm.INCUMBENT: Role.INCUMBENT}


class OutOfTime(Exception):
    """This start's time is over in the middle of a second look; what was run is committed, the next start goes on from there."""


class Deposed(Exception):
    """The incumbent was found out in one of its re-runs and has lost its place: the candidate meets the one before it."""


@dataclass(frozen=True)
class Look:
    """What a second look found: the outcome, the paired gain if there is one, and fields of the experiment's record."""

    outcome: Outcome
    gain: float | None = None  # mean over the pairs, positive is better
    fields: dict[str, Any] = field(default_factory=dict)

    def to_reward(self, incumbent: float, direction: Direction) -> Outcome:
        """The outcome as the reward sees it: its value is the incumbent's less the paired gain, not the lucky single run."""
        if self.gain is None:
            return self.outcome
        return dataclasses.replace(self.outcome, value=value_with(self.gain, incumbent, direction))


def paid_for(session: Session, source_hash: str) -> RunResult | None:
    """The first run of experiment 0, if the campaign was interrupted while it measured the noise floor."""
    if not session.config.confirm.enabled:
        return None
    return Repeats(session.memory).first_result(session.campaign.id, source_hash)


def looks_begun(session: Session) -> set[int]:
    """Experiments whose second look has begun, in this start or an earlier one."""
    return {one.index for one in Repeats(session.memory).of(session.campaign.id) if one.role is Role.FIRST}


def measure_floor(
    session: Session, source: str, source_hash: str, result: RunResult, outcome: Outcome, costs: Costs
) -> dict[str, Any]:
    """Run the untouched target on fresh seeds. Returns fields of experiment 0's record. Nothing is believed before this.

    Raises ResearchError when the target fails on most seeds: nothing could be compared with it.
    """
    confirm = session.config.confirm
    if not confirm.enabled or not confirm.baseline_repeats or outcome.value is None:
        return {}
    repeats, work = Repeats(session.memory), _Work(session, 0, source_hash, costs)
    with costs.timed("confirm"):
        work.open_test(result, level=None, against="")
        count, tried = confirm.baseline_repeats, _evidence(session, repeats).results(source_hash)
        seeds = list(enumerate(baseline_seeds(session.config.seed, count, tried), 1))
        lacking = [(number, seed) for number, seed in seeds if seed not in tried]
        if session.slots.count > 1 and len(lacking) > 1:  # side by side, as all that is compared with it will run
            orders = [(source, source_hash, seed, Role.BASELINE) for _, seed in lacking]
            work.run_at_once(orders, f"noise floor: the untouched target on {len(orders)} seeds at once")
        else:
            for number, seed in lacking:
                words = f"noise floor: the untouched target, run {number} of {count}, seed {seed}"
                work.run(source, source_hash, seed, Role.BASELINE, words)
    evidence = _evidence(session, repeats, device_of(result.extra))
    mean, runs = mean_of(evidence.results(source_hash))
    if mean is None:
        raise ResearchError(
            f"the untouched target gave no score on any of {confirm.baseline_repeats} fresh seeds; "
            f"mend {session.config.source} and start anew (--fresh), or set confirm.enabled=false"
        )
    noise = evidence.noise()
    if noise is not None:
        low, high = noise.interval()
        session.display.say(
            f"noise floor: one run has sd {noise.sd:.4f} (90 %: {low:.4f} to {high:.4f}, {noise.df} df)"
        )
    sd = evidence.spread(source_hash, noise, confirm.borrowed_df)
    told = confirmation_of(noise, sd, runs=work.runs, promotion=1)
    return {"confirmed_value": mean, "confirmations": runs, "extra": {"confirmation": told}}


def second_look(
    session: Session,
    index: int,
    source: str,
    source_hash: str,
    result: RunResult,
    outcome: Outcome,
    incumbent: Experiment,
    costs: Costs,
) -> Look:
    """Believe a better single run only after paired re-runs. Any other outcome comes back as it is.

    Raises OutOfTime, and Deposed when there is another incumbent now, against which this begins anew.
    """
    confirm = session.config.confirm
    if not confirm.enabled or outcome.status is not Status.KEPT or outcome.value is None:
        return Look(outcome)
    with costs.timed("confirm"):
        if small := settled_by_size(session, source_hash, outcome, incumbent):
            return small
        evidence = _evidence(session, Repeats(session.memory))
        noise = evidence.noise(without=source_hash)  # as it was when its test began, after a kill too
        gain = gain_over(outcome.value, reference(incumbent), session.campaign.direction)
        level = evidence.level(source_hash) or next_level(
            confirm.confidence, evidence.spent(), session.config.iterations
        )
        work = _Work(session, index, source_hash, costs)
        work.open_test(result, level, incumbent.source_hash)
        judgement, failure = _re_run(work, source, incumbent, noise, level)
    evidence = _evidence(session, Repeats(session.memory))
    crash = evidence.crash(source_hash)
    final = settled(outcome, gain, judgement, failure, crash)
    mean, runs = (None, 0) if crash else mean_of(evidence.results(source_hash))
    sd = evidence.spread(source_hash, noise, confirm.borrowed_df)
    promotion = incumbent.promotion + 1 if final.status is Status.KEPT else None
    told = confirmation_of(noise, sd, judgement, runs=work.runs, level=level, promotion=promotion)
    paired = judgement.gain if judgement is not None and not crash else None
    fields = {"confirmed_value": mean, "confirmations": runs, "extra": {"confirmation": told}}
    return Look(final, paired, fields)


def settled_by_size(session: Session, source_hash: str, outcome: Outcome, incumbent: Experiment) -> Look | None:
    """Settle a better single run whose gain is too small for re-runs. None: it is worth them, or they have begun."""
    if outcome.value is None:
        return None
    evidence, times = _evidence(session, Repeats(session.memory)), session.config.confirm.second_look
    noise, gain = evidence.noise(), gain_over(outcome.value, reference(incumbent), session.campaign.direction)
    if evidence.level(source_hash) is not None or worth_a_second_look(gain, noise, times):
        return None
    fields = {"extra": {"confirmation": confirmation_of(noise)}}
    return Look(too_small(outcome, gain, noise, times), fields=fields)


def _re_run(
    work: _Work, source: str, incumbent: Experiment, noise: Noise | None, level: float
) -> tuple[Judgement | None, str]:
    """Add pairs until the test decides. Returns its last judgement, and why the re-runs ended if it did not decide.

    Raises OutOfTime when no further run would end in time, Deposed when the incumbent is found out.
    """
    session, repeats = work.session, Repeats(work.session.memory)
    test = paired_test(session.config.confirm)
    own, reuse = repeats.of(session.campaign.id), session.config.confirm.reuse
    seeds = seeds_for(work.index, own, session.config.seed, test.max_pairs + SPARE_SEEDS, reuse)
    sources = {Arm.CANDIDATE: (source, work.source_hash), Arm.INCUMBENT: (incumbent.source, incumbent.source_hash)}
    judgement: Judgement | None = None
    resumed, together = True, False
    while True:
        if work.deposed:
            raise Deposed(work.deposed)
        evidence = _evidence(session, repeats)
        mine, theirs = evidence.results(work.source_hash), evidence.results(incumbent.source_hash)
        if evidence.crash(work.source_hash):
            return judgement, ""
        whole = seeds_in_order(seeds, mine, theirs)
        gains = paired_gains(whole, mine, theirs, session.campaign.direction)[: test.max_pairs]
        if gains and resumed:
            # A start that finds pairs was cut off. Had they been run at once, none would have been judged before first_look of
            # them: what a kill leaves of such a batch must not drop the candidate either.
            together = any(seed in mine for seed in set(seeds) - set(whole)) or bool(session.at_once())
        if gains:
            judgement = test.judge_new(gains, judgement.pairs if judgement else 0, noise, level)
            too_early = together and judgement.pairs < test.first_look
            if judgement.decision is Decision.PROMOTE or (judgement.decision is Decision.DROP and not too_early):
                return judgement, ""
        resumed = False
        pairs = max(test.first_look, len(gains) + 1)
        lacking = next_runs(seeds, mine, theirs, pairs)
        if not lacking:
            return judgement, "the incumbent failed on too many fresh seeds"
        if over := session.out_of_time(1):
            raise OutOfTime(over)
        at_once = session.at_once()
        while pairs < test.max_pairs and len(more := next_runs(seeds, mine, theirs, pairs + 1)) <= at_once:
            pairs, lacking = pairs + 1, more
        so_far = f", gain {judgement.gain:+.4f} in {judgement.pairs}" if judgement else ""
        orders = [(*sources[run.arm], run.seed, ROLES[run.arm]) for run in lacking]
        # More than are idle queue behind the candidates that run now.
        rounds = math.ceil(len(orders) / session.slots.count) + (len(orders) > at_once)
        if not at_once or session.out_of_time(rounds):
            # One by one: many candidates are given up after a pair or two, and all at once would not end in time.
            pair = f"pair {len(gains) + 1} of at most {test.max_pairs}{so_far}"
            words = f"confirming #{work.index}: {lacking[0].arm} on seed {lacking[0].seed}, {pair}"
            work.run(*orders[0], words, incumbent)
        else:
            some = f"pairs {len(gains) + 1} to {pairs} of at most {test.max_pairs}{so_far}"
            work.run_at_once(orders, f"confirming #{work.index}: {len(orders)} runs at once, {some}", incumbent)


@dataclass
class _Work:
    """The re-runs of one experiment: done one by one, each committed, counted."""

    session: Session
    index: int
    source_hash: str
    costs: Costs
    runs: int = 0
    against: str = ""
    deposed: str = ""

    def open_test(self, result: RunResult, level: float | None, against: str) -> None:
        """Commit the first run whole, with the level of the test, unless an interrupted campaign did so already."""
        self.against = against
        repeats, campaign = Repeats(self.session.memory), self.session.campaign.id
        done = repeats.of(campaign)
        self.runs = sum(one.index == self.index and one.role is not Role.FIRST for one in done)
        if not any(one.source_hash == self.source_hash and one.role is Role.FIRST for one in done):
            score = result.score.value if result.score is not None else None
            seed = self.session.config.seed
            first = Repeat(
                campaign, self.index, Role.FIRST, self.source_hash, seed, score, "", level, against, seconds_of(result)
            )
            commit_repeat(repeats, dataclasses.replace(first, created_at=utc_now()), result)

    def run(
        self, source: str, source_hash: str, seed: int, role: Role, words: str, incumbent: Experiment | None = None
    ) -> None:
        """Do one run to its end, without a stopping verdict, and commit it. Raises ConfigError when the disk is full."""
        session = self.session
        check_disk(session.folder, session.config.environment)
        if not session.side_by_side:  # else the loop makes room: the policy has one owner, and we run beside it
            session.make_room()
        session.display.phase(words)
        result = session.slots.run(self._order(source, seed, role, blamed=True), session.display.event)
        self._commit(source_hash, seed, role, result, incumbent)

    def run_at_once(
        self, runs: Sequence[tuple[str, str, int, Role]], words: str, incumbent: Experiment | None = None
    ) -> None:
        """Do runs (source, its hash, seed, role) on whatever slots are free, and commit each as it lands.

        They queue with the candidates, so that more of them than slots only wait.
        """
        session = self.session
        check_disk(session.folder, session.config.environment)
        session.display.phase(words)
        first = next((one for one in runs if one[3] is Role.CANDIDATE), None)  # one of them stands for the program
        flying = {
            session.slots.submit(self._order(one[0], *one[2:], blamed=one is first), lambda _event: None): one[1:]
            for one in runs
        }
        for landed in as_completed(flying):
            self._commit(*flying[landed], landed.result(), incumbent)

    def _order(self, source: str, seed: int, role: Role, blamed: bool) -> Order:
        blamed = blamed and role is Role.CANDIDATE
        return Order(self.index, source, seed, self._place(seed, role), "none", {}, blamed=blamed)

    def _place(self, seed: int, role: Role) -> Path:
        return self.session.place(self.index) / f"{role}_seed_{seed}"

    def _commit(self, source_hash: str, seed: int, role: Role, result: RunResult, incumbent: Experiment | None) -> None:
        session = self.session
        session.ran(result)
        session.check_device(self.index, result)
        shutil.rmtree(self._place(seed, role), ignore_errors=True)
        self.runs += 1
        outcome = settle(result, None, session.campaign.direction)
        repeat = Repeat(
            session.campaign.id,
            self.index,
            role,
            source_hash,
            seed,
            outcome.value,
            outcome.reason if outcome.value is None else "",
            against=self.against if role is Role.CANDIDATE else "",
            seconds=seconds_of(result),
            created_at=utc_now(),
        )
        repeats = Repeats(session.memory)
        confirmed = None
        if role is Role.INCUMBENT and incumbent is not None and outcome.value is not None:
            known = _evidence(session, repeats).results(source_hash) | {seed: outcome.value}
            mean, runs = mean_of(known)
            confirmed = (incumbent.index, mean, runs) if mean is not None else None
        deposed = None
        if role is Role.INCUMBENT and incumbent is not None and (lost := found_out(incumbent.index, outcome, seed)):
            deposed = (incumbent.index, lost)
            self.deposed = f"experiment {incumbent.index} {lost.reason}"
        commit_repeat(repeats, repeat, confirmed=confirmed, deposed=deposed)


def _evidence(session: Session, repeats: Repeats, device: str = "") -> Evidence:
    campaign, history = session.campaign, session.config.confirm.history
    earlier = repeats.earlier(campaign.environment_digest, campaign.id, device=device) if history else []
    return Evidence(repeats.of(campaign.id), earlier, campaign.direction)
