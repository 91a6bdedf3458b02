"""Wait until the machine is quiet, before a campaign's first measurement.

On a CPU a budget of seconds buys less training while something else computes: what an installation left to do, another
program, and MLflow setting up its database, six seconds of a core. What experiment 0 and the noise floor measured then would
blunt the whole campaign (docs/log.md). Later runs are not waited for: work that lasts is the user's business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from arl_core.config import CampaignConfig
from flows.display import Display

WINDOW_S = 0.5
QUIET_WINDOWS = 4  # in a row
SPARE_CORES = 0.25  # what a machine at rest uses
MOST_BUDGETS, MOST_S = 3, 60.0  # waiting longer than a few runs, or a minute, is no remedy
STAT = Path("/proc/stat")


def wait_for_quiet(
    config: CampaignConfig, display: Display, sleep: Callable[[float], None] = time.sleep, stat: Path = STAT
) -> None:
    """Wait until the cores that candidates need are free, three budgets or a minute at most; if they are not then, say so.

    For candidates on this machine's CPU only. Where /proc/stat cannot be read, nothing is waited for.
    """
    if config.environment.device != "cpu" or config.nodes.deployment or not stat.is_file():
        return
    cores = os.sched_getaffinity(0)
    needed = min(len(cores), config.environment.threads * config.parallel)
    began, quiet, used = _seconds_used(stat, cores), 0, 0.0
    for window in range(int(min(MOST_S, MOST_BUDGETS * config.environment.budget_s) / WINDOW_S)):
        sleep(WINDOW_S)
        now = _seconds_used(stat, cores)
        used, began = (now - began) / WINDOW_S, now
        quiet = quiet + 1 if used <= len(cores) - needed + SPARE_CORES else 0
        if quiet == QUIET_WINDOWS:
            return
        if window == QUIET_WINDOWS:
            display.phase("waiting for the machine to become quiet")
    display.say(
        f"other work keeps {used:.1f} of {len(cores)} cores busy: runs get less done, and differ more, than on a quiet machine"
    )


def _seconds_used(stat: Path, cores: set[int]) -> float:
    """CPU time that these cores have spent on anything since the machine began, in seconds. Source: proc_stat(5)."""
    ticks = 0
    for line in stat.read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, times[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
