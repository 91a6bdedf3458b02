"""Save what a campaign cannot do without, and bring it back: the memory, the policy's checkpoints, the first source.

python -m flows.backup save FOLDER [--memory mlruns/memory.duckdb]
python -m flows.backup load FOLDER [--memory mlruns/memory.duckdb]

Both hold the campaign lock, so that nothing is copied while a campaign writes, and both read what they copied before they
are content. Nothing is ever replaced: load wants the memory's place empty.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from arl_core.campaign_lock import campaign_lock
from arl_core.errors import MemoryFileError
from arl_core.memory import Memory
from flows.surroundings import ROOT
from frozen_env.contract import ResearchError

MEMORY = "memory.duckdb"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.backup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("save", "load"), help="save to the folder, or load from it")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="mlruns/memory.duckdb", help="the memory file (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with campaign_lock(ROOT / options.memory):
            experiments = (save if options.what == "save" else load)(ROOT / options.memory, options.folder.resolve())
    except (ResearchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{experiments} experiments, checked, in {options.folder if options.what == 'save' else options.memory}")
    return 0


def save(memory: Path, folder: Path) -> int:
    """Copy the memory at `memory` and its campaigns to `folder`, which must not hold a backup; return its experiments."""
    if not memory.is_file():
        raise MemoryFileError(f"there is no memory at {memory}; name one with --memory")
    if (folder / MEMORY).exists():
        raise MemoryFileError(f"{folder} holds a backup already; give another folder")
    return _copy(memory, folder / MEMORY, memory.parent / "campaigns", folder / "campaigns")


def load(memory: Path, folder: Path) -> int:
    """Bring a backup to the empty place `memory`; return its experiments."""
    if not (folder / MEMORY).is_file():
        raise MemoryFileError(f"there is no backup in {folder}")
    if memory.exists():
        raise MemoryFileError(f"there is a memory at {memory} already; move it aside first, nothing is replaced")
    return _copy(folder / MEMORY, memory, folder / "campaigns", memory.parent / "campaigns")


def count(memory: Path) -> int:
    """Read every experiment of a memory and return their number. Raises MemoryFileError when it cannot be read."""
    with contextlib.closing(Memory(memory, read_only=True)) as opened:
        return sum(len(opened.experiments(campaign.id)) for campaign in opened.campaigns())


def _copy(memory: Path, to_memory: Path, campaigns: Path, to_campaigns: Path) -> int:
    to_memory.parent.mkdir(parents=True, exist_ok=True)
    for campaign in sorted(campaigns.iterdir()) if campaigns.is_dir() else ():
        for name in ("policy", "seed_train.py"):
            source, target = campaign / name, to_campaigns / campaign.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.is_file():
                shutil.copy2(source, target)
    # A campaign that was killed leaves a write-ahead log: part of the memory until it is next written to.
    log, to_log = (path.with_name(path.name + ".wal") for path in (memory, to_memory))
    if log.exists():
        shutil.copy2(log, to_log)
    shutil.copy2(memory, to_memory)  # last: a backup without it is none
    there, here = count(memory), count(to_memory)
    if there != here:
        raise MemoryFileError(
            f"{memory} holds {there} experiments and its copy {here}; remove {to_memory} and try again"
        )
    return here


if __name__ == "__main__":
    sys.exit(main())
