"""What starting a candidate or a scoring worker takes: its folders, the order to start it, and the child that comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from frozen_env.runtime import disk, processes
from frozen_env.runtime.channel import Channel
from frozen_env.runtime.seccomp import ProcessListener


@dataclass(frozen=True)
class Workplace:
    """The folders of one run. `candidate/` is all that a candidate reads of ours, its scratch folder all that it writes."""

    root: Path

    @property
    def source(self) -> Path:
        return self.root / "candidate" / "train.py"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def submission(self) -> Path:
        return self.root / "submission"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    def create(self, source: str) -> None:
        """Make the folders, without what an earlier run in the same place left there."""
        for folder in (self.source.parent, self.scratch, self.submission):
            disk.remove(folder)
            folder.mkdir(parents=True)
        self.log.unlink(missing_ok=True)
        self.source.write_text(source, encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Order:
    """What a child needs to know; its message channel, output pipe and shared buffers come as open files.

    A candidate trains; a worker answers held-out inputs. `readable` are the folders that it may read besides libraries.
    """

    kind: Literal["candidate", "worker"]
    source: str
    scratch: str
    readable: list[str]
    seed: int
    host_pid: int
    weights: str = ""  # of a worker: the submission

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
