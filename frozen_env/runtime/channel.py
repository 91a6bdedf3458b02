"""JSON lines over a stream socket or pipe, with a limit on what an untrusted side may send."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

from frozen_env.contract import ResearchError

MAX_LINE_BYTES = 4096
READ_BYTES = 65536


class ProtocolError(ResearchError):
    """The other side sent something that is no message."""


class Closed(ResearchError):
    """The other side has gone."""


class LineReader:
    """Cut a byte stream into JSON objects. `limit_bytes` bounds one line; more raises ProtocolError."""

    def __init__(self, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pending = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > self._limit_bytes or any(len(line) > self._limit_bytes for line in lines):
            raise ProtocolError(f"a message is longer than {self._limit_bytes} bytes")
        return [self._parse(line) for line in lines if line.strip()]

    @staticmethod
    def _parse(line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"not a JSON object: {line[:80]!r}")
        return message


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line. Non-finite floats travel as NaN and Infinity, which Python's json reads back."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Channel:
    """A message channel over a socket. The candidate's side may block; the host's side never does (send_now,
    receive_ready), because the other end may be held open by anything that a candidate forked."""

    def __init__(self, sock: socket.socket, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self.sock = sock
        self._reader = LineReader(limit_bytes)
        self._inbox: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.sock.sendall(encode(message))
        except OSError as error:
            raise Closed("the other side closed the channel") from error

    def send_now(self, message: dict[str, Any]) -> None:
        """Send without waiting. Raises ProtocolError when the other side does not read what it is sent."""
        data = encode(message)
        try:
            sent = self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Closed("the other side closed the channel") from error
        if sent != len(data):
            raise ProtocolError("does not read the replies to its messages")

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the next message. Raises Closed at end of stream, TimeoutError after timeout_s."""
        self.sock.settimeout(timeout_s)
        while not self._inbox:
            self._read()
        return self._inbox.pop(0)

    def receive_ready(self) -> list[dict[str, Any]]:
        """Return every message that can be had by one read that does not wait."""
        with contextlib.suppress(BlockingIOError):
            self._read(socket.MSG_DONTWAIT)
        messages, self._inbox = self._inbox, []
        return messages

    def _read(self, flags: int = 0) -> None:
        try:
            data = self.sock.recv(READ_BYTES, flags)
        except ConnectionError as error:
            raise Closed("the other side closed the channel") from error
        if not data:
            raise Closed("the other side closed the channel")
        self._inbox += self._reader.feed(data)

    def close(self) -> None:
        self.sock.close()


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
