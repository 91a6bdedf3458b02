"""A warm interpreter that holds nothing worth reading: candidates and scoring workers are forked from it.

Importing torch takes seconds, so children are forked from a process that has done it. A fork sees all of its parent's
memory, by its frames and objects: it must therefore not be the host, which holds the held-out text. The host forks the
zygote before it loads any data; the zygote hears where things lie, never what is in them. Children are handed to the host
as theirs (by a double fork: the host adopts orphans), so that the host waits for them and ends them.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Literal, NoReturn

from frozen_env.contract import HostError, SandboxUnavailable
from frozen_env.runtime import bubblewrap, gpus, inside, processes
from frozen_env.runtime.channel import Channel
from frozen_env.runtime.launch import Child, Order
from frozen_env.runtime.seccomp import ProcessListener
from frozen_env.runtime.words import Output, last_line
from frozen_env.spec import EnvironmentSpec

START_LIMIT_S = 170.0  # importing torch from a cold disk
CONFINE_LIMIT_S = 30.0
BUBBLEWRAP_LIMIT_S = 180.0  # there torch is imported anew
MESSAGE_BYTES = 65536
MAX_FILES = 8


class Zygote:
    """The host's hold on it. Raises HostError when the process has died."""

    def __init__(self, spec: EnvironmentSpec, confinement: str, *, torch: bool = True) -> None:
        """Fork it. Call before data is loaded, while this process is single-threaded, after adopt_orphans().

        `torch`: import it for the children. Where they become commands nothing is imported for them.
        """
        self._spec, self._confinement = spec, confinement
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        host_pid = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _be_zygote(theirs, spec, confinement, host_pid, torch)
        theirs.close()

    def wait_ready(self) -> Literal["cpu", "cuda"]:
        """Wait until it is warm. Return the device that candidates run on."""
        self._sock.settimeout(START_LIMIT_S)
        return "cuda" if self._receive() == b"cuda" else "cpu"

    def start(self, order: Order, buffers: Sequence[int] = ()) -> Child:
        """Start a child with these shared buffers (open files), confined before it runs any of the candidate's code.

        Raises SandboxUnavailable when it could not be confined.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        output_read, output_write = os.pipe()
        files = [theirs.fileno(), output_write, *buffers]
        try:
            self._sock.settimeout(CONFINE_LIMIT_S)
            socket.send_fds(self._sock, [order.to_json().encode()], files)
            pid = int(self._receive())
        except OSError as error:
            raise HostError(f"the warm interpreter does not answer: {error}") from error
        finally:
            theirs.close()
            os.close(output_write)
        return Child(pid, Channel(ours), output_read, self._confined(ours, output_read))

    def _receive(self) -> bytes:
        try:
            data = self._sock.recv(MESSAGE_BYTES)
        except OSError as error:
            raise HostError(f"the warm interpreter does not answer: {error}") from error
        if not data:
            raise HostError("the warm interpreter has died; see the host's log")
        return data

    def _confined(self, sock: socket.socket, output_fd: int) -> ProcessListener | None:
        """Wait for the child's word that it is confined, which comes with its process listener."""
        sock.settimeout(BUBBLEWRAP_LIMIT_S if self._confinement.startswith("bubblewrap") else CONFINE_LIMIT_S)
        try:
            word, files, _, _ = socket.recv_fds(sock, len(inside.CONFINED), 1)
        except OSError:
            word, files = b"", []
        sock.settimeout(None)
        if word != inside.CONFINED or (self._spec.sandbox == "on" and not files):
            output = Output(output_fd)
            output.drain()
            raise SandboxUnavailable(
                f"a candidate could not be confined: {last_line(output.tail) or 'no reason was given'}. If you trust every "
                "candidate, --set environment.sandbox=off (it is written on every result)."
            )
        return ProcessListener(files[0]) if files else None


def _be_zygote(sock: socket.socket, spec: EnvironmentSpec, confinement: str, host_pid: int, torch: bool) -> NoReturn:
    code = 1
    try:
        processes.die_with_parent(host_pid)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        control = os.dup2(sock.fileno(), 3)
        sock.detach()
        os.closerange(4, 65536)
        with socket.socket(fileno=control) as ours:
            device = _warm_up(spec, confinement) if torch else _device_without_torch(spec)
            spec = dataclasses.replace(spec, device=device)
            ours.send(device.encode())
            while _serve_one(ours, spec, confinement):
                pass
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _warm_up(spec: EnvironmentSpec, confinement: str) -> Literal["cpu", "cuda"]:
    """Import what every candidate imports, then freeze it out of the garbage collector. Return the device."""
    import torch

    if not confinement.startswith("bubblewrap"):
        import safetensors.torch  # noqa: F401
        import torch._dynamo
        import torch.utils.flop_counter

    gc.collect()
    gc.freeze()
    if spec.device != "auto":
        return spec.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_without_torch(spec: EnvironmentSpec) -> Literal["cpu", "cuda"]:
    if spec.device != "auto":
        return spec.device
    return "cuda" if gpus.assigned(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus.listed()) else "cpu"


def _serve_one(sock: socket.socket, spec: EnvironmentSpec, confinement: str) -> bool:
    """Fork one child on request. False when the host has gone."""
    data, files, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, MAX_FILES)
    if not data:
        return False
    sock.send(str(_fork_for_host(Order.from_json(data.decode()), files, spec, confinement)).encode())
    for fd in files:
        os.close(fd)
    return True


def _fork_for_host(order: Order, files: list[int], spec: EnvironmentSpec, confinement: str) -> int:
    """Fork a child that is the host's, not ours, and return its process id."""
    pid_read, pid_write = os.pipe()
    middle = os.fork()
    if middle == 0:
        pid = os.fork()
        if pid != 0:
            os.write(pid_write, str(pid).encode())
            os._exit(0)
        _become_child(order, files, spec, confinement)
    os.close(pid_write)
    pid = int(os.read(pid_read, 32))
    os.close(pid_read)
    os.waitpid(middle, 0)
    return pid


def _become_child(order: Order, files: list[int], spec: EnvironmentSpec, confinement: str) -> NoReturn:
    try:
        deadline_s = time.monotonic() + CONFINE_LIMIT_S
        while os.getppid() != order.host_pid and time.monotonic() < deadline_s:
            time.sleep(0.0002)
        processes.die_with_parent(order.host_pid)
        os.setsid()
        inside.arrange_files(files)
        if confinement.startswith("bubblewrap"):
            bubblewrap.become(order, spec, len(files) - 2)
        inside.run(order, spec, confine=inside.by_landlock if spec.sandbox == "on" else None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
