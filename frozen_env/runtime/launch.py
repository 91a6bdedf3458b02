"""What starting a candidate or a scoring worker takes: its folders, the order to start it, and the child that comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from frozen_env.files import split
from frozen_env.runtime import disk, processes
from frozen_env.runtime.channel import Channel
from frozen_env.runtime.seccomp import ProcessListener

DATA, INPUTS = "data", "inputs"  # what a command finds beside its files: training data, held-out inputs


@dataclass(frozen=True)
class Commands:
    """How a problem is run that is no torch module: one command trains and leaves `model`, one reads it and the held-out
    inputs and writes `predictions`. Both run in a folder of their own with copies of the files, edited and `given` ones.
    """

    train: tuple[str, ...]
    predict: tuple[str, ...]
    model: str
    predictions: str
    training_folder: str
    held_out_folder: str
    curve: str = ""  # regular expression on the output of `train`; '': no curve
    given: Mapping[str, str] = field(default_factory=dict)  # {name: absolute path}
    readable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()  # of the installed packages


@dataclass(frozen=True)
class Workplace:
    """The folders of one run. `candidate/` is all that a candidate reads of ours, its scratch folder all that it writes."""

    root: Path
    files: tuple[str, ...] = ("train.py",)
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def candidate(self) -> Path:
        return self.root / "candidate"

    @property
    def source(self) -> Path:
        return self.candidate / self.files[0]

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def scoring_scratch(self) -> Path:
        """Of every scoring worker in turn, made anew for each: its name does not tell which pass it is."""
        return self.root / "scratch-scoring"

    @property
    def submission(self) -> Path:
        return self.root / "submission"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def create(self, source: str) -> None:
        """Make the folders, without what an earlier run in the same place left there.

        Raises ValueError when the source is not of these files.
        """
        for folder in (self.candidate, self.scratch, self.submission):
            disk.remove(folder)
            folder.mkdir(parents=True)
        self.log.unlink(missing_ok=True)
        for name, text in split(source, self.files).items():
            path = self.candidate / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="replace")
        for name, origin in self.given.items():
            path = self.candidate / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, path)

    def furnish(self, scratch: Path, links: Mapping[str, str]) -> None:
        """Copy the candidate's files into a scratch folder, which commands run in, and link what they may read there."""
        shutil.copytree(self.candidate, scratch, dirs_exist_ok=True)
        for name, origin in links.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path):
                path.symlink_to(origin)


@dataclass(frozen=True)
class Order:
    """What a child needs to know; its message channel, output pipe and shared buffers come as open files.

    A candidate trains; a worker answers held-out inputs. `readable` are the folders that it may read besides libraries,
    `hidden` what it may not read of those. With a `command` the child becomes that program, whatever it is written in.
    """

    kind: Literal["candidate", "worker"]
    source: str
    scratch: str
    readable: list[str]
    seed: int
    host_pid: int
    weights: str = ""  # of a worker: the submission
    command: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Child:
    """A started child as the host sees it: process id, message channel, read end of its output, its process listener."""

    pid: int
    channel: Channel
    output_fd: int
    listener: ProcessListener | None  # None when the sandbox is off

    def terminate(self) -> None:
        """SIGTERM to the candidate itself, which may run inside a bubblewrap."""
        inner = [] if self.listener is None else processes.children(self.pid)
        name = processes.name(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(inner[0] if inner and name == "bwrap" else self.pid, signal.SIGTERM)

    def close(self) -> None:
        self.channel.close()
        os.close(self.output_fd)
        if self.listener is not None:
            self.listener.close()
