"""What a candidate may call. These functions run inside the candidate, which may replace them: nothing here is trusted.

Legend: B rows of a batch, T = seq_len() positions.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frozen_env.contract import NotJoined

if TYPE_CHECKING:
    import torch

    from frozen_env.runtime.channel import Channel

SUBMISSION = "submission.safetensors"


@dataclass
class Run:
    """A candidate's link to its supervisor; `channel` is None in a scoring worker, which has no clock and no text."""

    vocab_size: int
    seq_len: int
    budget_s: float
    seed: int
    device: str
    scratch: str
    channel: Channel | None = None
    batch_buffer: mmap.mmap | None = None
    started_at_s: float | None = None
    time_is_up: bool = False
    asked: int = 0  # rows that were asked for and have not come yet
    ahead_RT1: torch.Tensor | None = None  # rows that came and were not handed out yet
    waited_s: float = 0.0  # for training text


_run: Run | None = None


def join(run: Run) -> None:
    """Bind this process to a run. Called by the launcher, before the candidate's code."""
    global _run
    _run = run
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(_signal: int, _frame: Any) -> None:
    """SIGTERM means that the budget is used: progress() says 1.0, and submit() is due within the grace period."""
    if _run is not None:
        _run.time_is_up = True


def _joined() -> Run:
    if _run is None:
        raise NotJoined(
            "target/train.py runs under a supervisor: "
            "python -m frozen_env run --source target/train.py --preset embedded --out DIR"
        )
    return _run


def _training() -> tuple[Run, Channel]:
    run = _joined()
    if run.channel is None:
        raise NotJoined(
            "this process scores a model: start, next_batch, report and submit belong under `if __name__ == '__main__'`"
        )
    return run, run.channel


def vocab_size() -> int:
    """Number of token ids; logits have this many columns."""
    return _joined().vocab_size


def seq_len() -> int:
    """Tokens per row, in training and in scoring."""
    return _joined().seq_len


def budget_s() -> float:
    """Training time in seconds, counted from start(): as planned, and from then on less what a long start-up took of it."""
    return _joined().budget_s


def seed() -> int:
    """The run's seed; it fixes the order of the batches. torch is seeded with it before the candidate starts."""
    return _joined().seed


def device() -> str:
    """'cuda' or 'cpu', as the environment resolved it."""
    run = _joined()
    if run.device == "auto":
        import torch

        run.device = "cuda" if torch.cuda.is_available() else "cpu"
    return run.device


def dummy_batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens in the shape of a batch, for compilation and warm-up before start(). Shapes [rows, T], int64."""
    import torch

    run = _joined()
    tokens = torch.randint(run.vocab_size, (rows, run.seq_len + 1), device=device())
    return tokens[:, :-1], tokens[:, 1:]


def start() -> None:
    """Start the clock. Before it no training text is served. Calling it twice has no effect."""
    run, channel = _training()
    if run.started_at_s is not None:
        return
    channel.send({"start": True})
    run.budget_s = float(channel.receive()["budget_s"])  # a schedule must end when the clock does
    run.started_at_s = time.monotonic()


def progress() -> float:
    """Share of the budget used, in [0, 1]; 0 before start()."""
    run = _joined()
    if run.time_is_up:
        return 1.0
    if run.started_at_s is None:
        return 0.0
    return min(1.0, (time.monotonic() - run.started_at_s) / run.budget_s)


def next_batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next rows of training text: (inputs_BT, targets_BT), int64, on device(). Targets are inputs shifted by one.

    The run's seed fixes the order of rows, whatever the batch size. The next batch
    is asked for ahead, while this one is learned from. Once the budget is used no new text is served: the last batch
    comes again. Raises NotJoined before start(), ValueError when rows is not in 1..buffer size.
    """
    run, channel = _training()
    if run.started_at_s is None:
        raise NotJoined("call frozen_env.start() before the first next_batch(): training text is served from then on")
    rows = int(rows)
    began_s = time.monotonic()
    ready_RT1 = run.ahead_RT1
    while ready_RT1 is None or len(ready_RT1) < rows or rows < 1:
        if run.asked == 0:
            _ask(run, channel, rows - (0 if ready_RT1 is None else len(ready_RT1)))
        ready_RT1 = _receive(run, channel, ready_RT1)
    run.waited_s += time.monotonic() - began_s
    tokens, run.ahead_RT1 = ready_RT1[:rows], ready_RT1[rows:]
    if len(run.ahead_RT1) < rows and run.asked == 0:
        _ask(run, channel, rows - len(run.ahead_RT1))  # served while this batch is learned from
    if device() == "cuda":
        tokens = tokens.pin_memory().to("cuda", non_blocking=True)
    return tokens[:, :-1], tokens[:, 1:]


def _ask(run: Run, channel: Channel, rows: int) -> None:
    channel.send({"rows": rows})
    run.asked = rows


def _receive(run: Run, channel: Channel, before_RT1: torch.Tensor | None) -> torch.Tensor:
    """Return the rows that are there with those that were asked for. Raises ValueError when they were refused."""
    import torch

    reply = channel.receive()
    rows, run.asked = run.asked, 0
    if "error" in reply:
        raise ValueError(reply["error"])
    assert run.batch_buffer is not None
    width = run.seq_len + 1
    came = torch.frombuffer(run.batch_buffer, dtype=torch.uint16, count=rows * width).reshape(rows, width)
    came = came.to(torch.int64)  # copies out of the shared buffer, which the next request overwrites
    return came if before_RT1 is None or len(before_RT1) == 0 else torch.cat([before_RT1, came])


def report(step: int, loss: float, lr: float | None = None) -> None:
    """Tell the supervisor about a step: training loss in nats per token, and the learning rate.

    Steers early stopping and the display, never the score. Silence for long ends the run; so does a loss that is not
    finite.
    """
    _, channel = _training()
    channel.send({"report": [int(step), float(loss), None if lr is None or math.isnan(float(lr)) else float(lr)]})


def submit(model: torch.nn.Module) -> None:
    """Hand in the trained model. Its parameters and buffers are saved as safetensors and loaded into build_model()."""
    from safetensors.torch import save_model

    run, channel = _training()
    if run.started_at_s is None:
        raise NotJoined("call frozen_env.start() and train before submit()")
    part = os.path.join(run.scratch, SUBMISSION + ".part")
    save_model(getattr(model, "_orig_mod", model), part)
    os.replace(part, os.path.join(run.scratch, SUBMISSION))
    channel.send({"submit": {"waited_s": run.waited_s, "peak_vram_mb": _peak_vram_mb()}})
    channel.receive()


def _peak_vram_mb() -> float | None:
    """Most memory of the GPU that tensors took at a time, in MiB; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if device() == "cuda" else None
