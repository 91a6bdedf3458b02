"""The campaign: a sequence of experiments, each proposed, run, rewarded, remembered.

python -m flows.research --preset embedded --iterations 8
python -m flows.research --preset embedded --resume latest --iterations 16
python -m flows.research --preset embedded --set environment.budget_s=10 --set seed=3
python -m flows.research --problem examples/digits --iterations 8
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx
from prefect import flow
from prefect.exceptions import TerminationSignal

from arl_core.config import parse_overrides, preset_names
from arl_core.stop_conditions import StopConditions
from flows.confirm import OutOfTime, looks_begun
from flows.iteration import run_iteration, run_seed, settle_run, take_in
from flows.mortal import make_servers_mortal
from flows.opening import open_session, preflight
from flows.parallel import run_parallel
from flows.patient import outlive_readers, outlive_servers
from flows.quiet import wait_for_quiet
from flows.retention import is_retired
from flows.session import Session
from flows.signals import ending_on_sigterm
from flows.start import plan
from flows.summary import print_summary
from frozen_env.contract import ResearchError
from frozen_env.description import locate, shown
from tasks.track import is_open, prepare, track_campaign

outlive_readers()
outlive_servers()  # here, because a worker's engine imports this module and knows no main()


@flow(name="research", log_prints=False, persist_result=False, validate_parameters=False)
def research(
    preset: str = "overnight",
    iterations: int | None = None,
    resume: str | None = None,
    settings: dict[str, Any] | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run a campaign to its last iteration and return its id, its best value and the experiments by status.

    `settings` are dotted overrides, e.g. {"environment.problem": "examples/digits"}. `resume` is a campaign id or "latest": its own
    settings then hold, and those that would make its experiments incomparable cannot be overridden. A preset that
    `continues` (overnight) goes on with its latest campaign; `fresh` starts anew.
    """
    start = plan(preset, iterations, resume, settings or {}, fresh)
    with open_session(start) as session, _tracked(session):
        run(session, StopConditions(start.config.stop, start.config.environment.budget_s))
    return print_summary(session.memory, session.campaign.id, session.folder)


def run(session: Session, stop: StopConditions) -> None:
    """Run the experiments of this start, one after the other or side by side."""
    indices, memory, campaign = session.indices(), session.memory, session.campaign.id
    session.ran = stop.ran
    if memory.experiment(campaign, 0) is None:
        session.display.begin(0, session.last_index)
        wait_for_quiet(session.config, session.display)
        take_in(session, stop, run_seed(session))
        indices = session.indices()
    else:
        session.display.resumed(memory.experiments(campaign, whole=False), memory.incumbent(campaign))
        if next(session.indices(), None) is None and not session.landed:
            there = memory.next_index(campaign) - 1
            session.display.say(
                f"nothing left to run: --iterations counts from the campaign's beginning, and {there} are there; "
                f"--iterations {there + 8} goes on"
            )
    session.out_of_time = stop.out_of_time
    if session.slots.count > 1:
        run_parallel(session, indices, stop)
    else:
        with contextlib.suppress(OutOfTime):
            run_in_turn(session, indices, stop)
    if session.landed:
        session.commit_state()  # with what their second looks have cost so far
        waiting = ", ".join(f"#{index}" for index in sorted(session.landed))
        session.display.say(f"the second look at {waiting} goes on at the next start")
    if stop.reason():
        session.display.say(f"stopping: {stop.reason()}")


def run_in_turn(session: Session, indices: Iterator[int], stop: StopConditions) -> None:
    """Settle what an earlier start has run, then run one experiment after the other. Raises OutOfTime in a second look."""
    # Second looks that had begun come first, as side by side: their incumbent may be replaced by one that landed later.
    begun = looks_begun(session) if session.landed else set()
    for one in sorted(session.landed.values(), key=lambda one: one.proposal.index not in begun):
        session.display.begin(one.proposal.index, session.last_index)
        session.display.candidate(one.proposal.edit.summary)
        take_in(session, stop, settle_run(session, one.proposal, one.result))
    while not stop.reason() and (index := next(indices, None)) is not None:
        stop.begin()
        session.display.begin(index, session.last_index)
        take_in(session, stop, run_iteration(session, index))


@contextlib.contextmanager
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
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, Prefect's cancelling
        status = "interrupted"
        raise
    finally:
        campaign = dataclasses.replace(session.campaign, status=status)
        if status != "interrupted":
            session.display.phase("bringing MLflow in line")
            track_campaign(campaign, session.folder, session.memory, functools.partial(is_retired, session))
        elif is_open(session.runs_folder):
            # Whoever interrupts does not want to wait: what MLflow lacks is made up for at the end of the next start.
            track_campaign(campaign, session.folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.research", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded", help=f"one of: {', '.join(preset_names())} (default: embedded)")
    parser.add_argument("--problem", metavar="FOLDER", help="a problem of your own (docs/problems.md)")
    parser.add_argument(
        "--iterations",
        type=int,
        help="experiments after experiment 0: in all, or more of them in this start where the preset `continues` (overnight); "
        "default: the preset's",
    )
    parser.add_argument("--resume", metavar="ID", help='go on with a campaign: its id, or "latest"')
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; see docs/settings.md"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start anew where the preset goes on with its last campaign"
    )
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = {}
    try:
        if options.problem is not None:
            settings["environment.problem"] = shown(locate(options.problem))
        settings |= parse_overrides(options.set)
        chosen = (options.preset, options.iterations, options.resume, settings, options.fresh)
        make_servers_mortal()
        with ending_on_sigterm():  # inside a flow Prefect listens
            preflight(plan(*chosen))
            research(*chosen)
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except httpx.HTTPError as error:  # at its begin or end; in between a campaign does not need it
        print(
            f"error: the Prefect server does not answer ({type(error).__name__}: {error}); start it again, or unset "
            "PREFECT_API_URL to do without. What was committed is kept: --resume latest",
            file=sys.stderr,
        )
        return 1
    except (KeyboardInterrupt, TerminationSignal, SystemExit) as error:
        again = f"python -m flows.research --preset {options.preset} --resume latest"
        # Limits hold for one start and must be given again; the rest of what was set is a part of the campaign.
        again += "".join(f" --set {one}" for one in options.set if one.strip().startswith(("memory=", "stop.")))
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    return 0


if __name__ == "__main__":
    code = main()
    if code > 128:
        # Ours is closed. Prefect would go on to hand its events to the server; its own server leaves with us (mortal.py).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
