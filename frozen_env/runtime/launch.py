"""Fork a child from the warm host and turn it into a confined candidate or scoring worker."""

from __future__ import annotations

import gc
import os
import random
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import NoReturn

from frozen_env.runtime import client, processes, sandbox
from frozen_env.runtime.channel import Channel
from frozen_env.spec import EnvironmentSpec


@dataclass(frozen=True)
class Workplace:
    """The folders of one run. `candidate/` is all that a candidate reads of ours, `scratch/` all that it writes."""

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
        for folder in (self.source.parent, self.scratch, self.submission):
            folder.mkdir(parents=True, exist_ok=True)
        self.source.write_text(source, encoding="utf-8")


@dataclass(frozen=True)
class Child:
    """A forked child as its parent sees it: process id, message channel, and the read end of its output."""

    pid: int
    channel: Channel
    output_fd: int


def fork_child(
    body: Callable[[Channel], None], *, spec: EnvironmentSpec, place: Workplace, readable: list[str]
) -> Child:
    """Fork; the child confines itself, runs `body(channel)` and exits. Returns in the parent only.

    The host has no threads when it forks, so the child's heap and locks are sound.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    output_read, output_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_child(body, theirs, output_write, spec=spec, place=place, readable=readable)
    theirs.close()
    os.close(output_write)
    return Child(pid, Channel(ours), output_read)


def _run_child(
    body: Callable[[Channel], None],
    sock: socket.socket,
    output_fd: int,
    *,
    spec: EnvironmentSpec,
    place: Workplace,
    readable: list[str],
) -> NoReturn:
    code = 1
    try:
        processes.die_with_parent()
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        for target, origin in ((0, null), (1, output_fd), (2, output_fd)):
            os.dup2(origin, target)
        sock_fd = os.dup2(sock.fileno(), 3)
        os.closerange(4, 65536)
        sock.detach()
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
        _clean_environment(spec, place.scratch)
        os.chdir(place.scratch)
        sandbox.limit_resources(file_limit_mb=spec.submission_limit_mb)
        if spec.sandbox == "on":
            sandbox.confine(readable=[str(place.source.parent), *readable], writable=[str(place.scratch)])
        gc.enable()
        body(Channel(socket.socket(fileno=sock_fd)))
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _exit_code(error: SystemExit) -> int:
    """As the interpreter does it: text goes to stderr and counts as failure."""
    if isinstance(error.code, int | None):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _clean_environment(spec: EnvironmentSpec, scratch: Path) -> None:
    """No keys, tokens or home folder; the host itself was started with such an environment already."""
    gpu = {key: value for key, value in os.environ.items() if key == "CUDA_VISIBLE_DEVICES"}
    os.environ.clear()
    os.environ.update(
        PATH="/usr/bin:/bin",
        HOME=str(scratch),
        TMPDIR=str(scratch),
        TORCHINDUCTOR_CACHE_DIR=str(scratch / "inductor"),
        TRITON_CACHE_DIR=str(scratch / "triton"),
        OMP_NUM_THREADS=str(spec.threads),
        **gpu,
    )


def candidate_body(spec: EnvironmentSpec, place: Workplace, seed: int, buffer: mmap) -> Callable[[Channel], None]:
    """Run train.py as a script, joined to the run."""

    def body(channel: Channel) -> None:
        _seed_torch(spec, seed)
        client.join(_client_run(spec, place, seed, channel=channel, buffer=buffer))
        runpy.run_path(str(place.source), run_name="__main__")

    return body


def worker_body(
    spec: EnvironmentSpec, place: Workplace, seed: int, work: Callable[..., None]
) -> Callable[[Channel], None]:
    """Load train.py as a module (its training part does not run) and call `work(channel, build_model)`."""

    def body(channel: Channel) -> None:
        _seed_torch(spec, seed)
        client.join(_client_run(spec, place, seed))
        namespace = runpy.run_path(str(place.source), run_name="candidate")
        work(channel, namespace["build_model"])

    return body


def _client_run(
    spec: EnvironmentSpec, place: Workplace, seed: int, channel: Channel | None = None, buffer: mmap | None = None
) -> client.Run:
    return client.Run(
        vocab_size=spec.vocab_size,
        seq_len=spec.seq_len,
        budget_s=spec.budget_s,
        seed=seed,
        device=spec.device,
        scratch=str(place.scratch),
        channel=channel,
        batch_buffer=buffer,
    )


def _seed_torch(spec: EnvironmentSpec, seed: int) -> None:
    import torch

    torch.set_num_threads(spec.threads)
    torch.manual_seed(seed)
    random.seed(seed)
