"""What a child does between being forked and running a candidate's code, and that running. Nothing here is trusted after.

Its open files: 0 nothing to read, 1 and 2 its output, 3 its message channel, from 4 on the shared buffers.
"""

from __future__ import annotations

import gc
import os
import random
import runpy
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import NoReturn

from frozen_env.runtime import client, gpus, hiding, sandbox, seccomp, toolchain, worker
from frozen_env.runtime.channel import Channel
from frozen_env.runtime.launch import Order
from frozen_env.spec import EnvironmentSpec

CONFINED = b"confined\n"
CHANNEL_FD, FIRST_BUFFER_FD = 3, 4
THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Confine = Callable[[Order, EnvironmentSpec], None]


def arrange_files(files: list[int]) -> None:
    """Give channel, output and buffers their numbers and close everything else."""
    moved = [os.dup(fd) for fd in files]  # away from the numbers that are about to be taken
    null = os.open("/dev/null", os.O_RDONLY)
    channel, output, *buffers = moved
    last = FIRST_BUFFER_FD + len(buffers)
    safe = [fd if fd >= last else _dup_above(fd, last) for fd in (null, output, channel, *buffers)]
    targets = [0, 1, CHANNEL_FD, *range(FIRST_BUFFER_FD, last)]
    for target, origin in zip(targets, safe, strict=True):
        os.dup2(origin, target)
    os.dup2(1, 2)
    os.closerange(last, 65536)


def _dup_above(fd: int, least: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, least)


def by_landlock(order: Order, spec: EnvironmentSpec) -> None:
    visible, found = os.environ.get("CUDA_VISIBLE_DEVICES"), gpus.listed() if spec.device == "cuda" else []
    without = hiding.rules_without(hiding.places(order.hidden, sandbox.readable_paths())) if order.hidden else None
    sandbox.confine_files(
        readable=[*order.readable, *gpus.readable_paths(visible, found), *toolchain.readable_paths(spec.device)],
        writable=[order.scratch, *gpus.writable_paths(visible, found)],
    )
    if without is not None:
        hiding.obey(without)


def run(order: Order, spec: EnvironmentSpec, *, confine: Confine | None) -> NoReturn:
    """Confine this process and run the candidate in it. `confine` restricts files; None when the sandbox is off."""
    code = 1
    try:
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
        sock = socket.socket(fileno=CHANNEL_FD)
        buffers = _map_buffers()
        environment = clean_environment(order, spec)
        os.chdir(order.scratch)
        sandbox.limit_resources(spec)
        if confine is None:
            socket.send_fds(sock, [CONFINED], [])
        else:
            sandbox.drop_capabilities()
            confine(order, spec)
            listener = seccomp.install(seccomp.process_program(), listen=True)
            socket.send_fds(sock, [CONFINED], [listener])
            os.close(listener)
            seccomp.install(seccomp.deny_program(spec.device))
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # the warm interpreter has looked, and found /tmp
        gc.enable()
        _work(order, spec, Channel(sock), buffers)
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


def _map_buffers() -> list[mmap]:
    """Map every shared buffer and close its file: a candidate keeps the memory, not a descriptor."""
    buffers: list[mmap] = []
    fd = FIRST_BUFFER_FD
    while True:
        try:
            size = os.fstat(fd).st_size
        except OSError:
            return buffers
        buffers.append(mmap(fd, size))
        os.close(fd)
        fd += 1


def _exit_code(error: SystemExit) -> int:
    """As the interpreter does it: text goes to stderr and counts as failure."""
    if isinstance(error.code, int | None):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def clean_environment(order: Order, spec: EnvironmentSpec) -> dict[str, str]:
    """All that a candidate's environment says: no keys, tokens or home folder."""
    scratch = order.scratch
    told = {
        "ARL_BUDGET_S": f"{spec.budget_s:g}",
        "ARL_SEED": str(order.seed),
        "ARL_DEVICE": spec.device,
        "PYTHONUNBUFFERED": "1",  # the curve is read as it is printed
    }
    gpu = gpus.environment(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus.listed()) if spec.device == "cuda" else {}
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",
        **toolchain.IN_PROCESS,
        "TRITON_CACHE_DIR": f"{scratch}/triton",
        "OMP_NUM_THREADS": str(spec.threads),
        **toolchain.environment(spec.device),
        **(told | dict.fromkeys(THREAD_COUNTS, str(spec.threads)) if order.command else {}),
        **gpu,
    }


def _work(order: Order, spec: EnvironmentSpec, channel: Channel, buffers: list[mmap]) -> None:
    """Run train.py as a script, joined to the run; or, in a worker, as a module whose model answers; or become a command."""
    if order.command:
        _become_command(order.command, channel, spec.budget_s if order.kind == "candidate" else 0.0)
    sys.path.insert(0, str(Path(order.source).parent))  # where its other editable files are
    _seed_torch(spec, order.seed)
    run = client.Run(
        vocab_size=spec.vocab_size,
        seq_len=spec.seq_len,
        budget_s=spec.budget_s,
        seed=order.seed,
        device=spec.device,
        scratch=order.scratch,
    )
    client.join(run)
    if order.kind == "candidate":
        run.channel, run.batch_buffer = channel, buffers[0]
        runpy.run_path(order.source, run_name="__main__")
        return
    worker.get_ready(channel)
    namespace = runpy.run_path(order.source, run_name="candidate")
    worker.answer(channel, namespace["build_model"], order.weights, inputs=buffers[0], outputs=buffers[1])


def _become_command(command: list[str], channel: Channel, budget_s: float) -> NoReturn:
    """Turn into the program. Confinement stays: it is this process's, for good. `python` is the one that we run on."""
    channel.close()
    if budget_s:
        os.environ["ARL_ENDS_AT"] = f"{time.monotonic() + budget_s:.3f}"  # one clock for all processes of a machine
    program = sys.executable if command[0] in ("python", "python3") else command[0]
    sys.stdout.flush()
    try:
        os.execvpe(program, [program, *command[1:]], dict(os.environ))
    except OSError as error:
        raise SystemExit(f"cannot run {command[0]!r}: {error.strerror}; name its folder in run.readable") from error


def _seed_torch(spec: EnvironmentSpec, seed: int) -> None:
    import torch

    torch.set_num_threads(spec.threads)
    torch.manual_seed(seed)
    random.seed(seed)


def main() -> NoReturn:
    """Entry point inside bubblewrap, which has confined the files: SPEC_JSON ORDER_JSON."""
    import json

    spec, order = EnvironmentSpec.from_json(json.loads(sys.argv[1])), Order.from_json(sys.argv[2])
    run(order, spec, confine=lambda _order, _spec: None)


if __name__ == "__main__":
    main()
