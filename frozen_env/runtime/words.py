"""What a candidate prints, before anything else of ours sees it: plain text, bounded."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import os
import re
import signal
import unicodedata
from collections.abc import Callable
from pathlib import Path

TAIL_CHARS = 4000
REASON_CHARS = 300
READ_BYTES = 65536
# Of Python, torch's CPU and CUDA allocators, CUDA itself, and libraries that found no workspace.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "OutOfMemoryError",
    "MemoryError",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "NVML_SUCCESS ==",  # torch asks NVML who holds a full GPU's memory, and dies of that where NVML may not answer
)
# Exception classes whose names may leave scoring, as a traceback spells them. A candidate can give its own class any name.
KNOWN_ERRORS = frozenset(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
) | {
    "json.decoder.JSONDecodeError",
    "numpy._core._exceptions._ArrayMemoryError",
    "numpy.exceptions.AxisError",
    "numpy.linalg.LinAlgError",
    "safetensors._safetensors_rust.SafetensorError",
    "torch.AcceleratorError",
    "torch.OutOfMemoryError",
    "torch._C._LinAlgError",
    "torch._dynamo.exc.BackendCompilerFailed",
    "torch._dynamo.exc.InternalTorchDynamoError",
    "torch._dynamo.exc.TorchRuntimeError",
    "torch._dynamo.exc.Unsupported",
    "torch._dynamo.exc.UserError",
    "torch._inductor.exc.InductorError",
}
# A terminal's control sequences: CSI (colours, cursor), OSC and its like (titles, links, clipboard), two-letter escapes.
_SEQUENCE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)?|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)


def plain(text: str) -> str:
    """Return text without terminal sequences and without control, format, private and lone surrogate characters.

    Line ends and tabs stay; a carriage return, which would let a line overwrite itself, becomes a line end.
    """
    text = _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("C"))


def one_line(text: str) -> str:
    """Return text as one short plain line."""
    text = " ".join(plain(text[: 20 * REASON_CHARS]).split())
    return text if len(text) <= REASON_CHARS else text[: REASON_CHARS - 1] + "…"


def out_of_memory(log: str) -> bool:
    """Say whether a program's last words are that memory ran out, the host's or the GPU's."""
    return any(word in log for word in OUT_OF_MEMORY_WORDS)


def last_line(log: str) -> str:
    """The last non-empty line of a log, as one_line(): usually the exception."""
    lines = [line for line in log.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def known_error(log: str) -> str:
    """The last of KNOWN_ERRORS that begins a line of a log, as the end of a traceback does; '' where there is none."""
    names = (line.partition(":")[0].strip() for line in reversed(log.splitlines()))
    return next((name for name in names if name in KNOWN_ERRORS), "")


def signal_name(number: int) -> str:
    """'SIGKILL' for 9; real-time signals, which a process may send to itself too, have a number only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Output:
    """The output of one process tree, read from a pipe without waiting: a bounded file, a tail, and a count.

    `hear` is told every piece of plain text as it comes.
    """

    def __init__(
        self, fd: int, path: Path | None = None, limit_bytes: int = 0, hear: Callable[[str], None] | None = None
    ) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.total_bytes = 0
        self.tail = ""
        self._path, self._room, self._hear = path, limit_bytes, hear
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self) -> bool:
        """Take what is there, at most READ_BYTES. False at the end of the stream."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.total_bytes += len(data)
        text = plain(self._decoder.decode(data))
        if self._path is not None and self._room > 0:
            kept = text.encode()[: self._room]
            self._room -= len(kept)
            with self._path.open("ab") as file:
                file.write(kept)
        self.tail = (self.tail + text)[-TAIL_CHARS:]
        if self._hear is not None:
            self._hear(text)
        return True

    def drain(self) -> None:
        """Take what the dead have left: a pipe holds no more than a few times READ_BYTES."""
        for _ in range(64):
            before = self.total_bytes
            with contextlib.suppress(OSError):
                if not self.read():
                    return
            if self.total_bytes == before:
                return
