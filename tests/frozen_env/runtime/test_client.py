"""What a candidate calls, against a supervisor that answers in the same process."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch

from frozen_env.contract import NotJoined
from frozen_env.runtime import client

T, MOST = 8, 50


class Supervisor:
    """Answers as training.py does; row n holds the token n, T + 1 times. `log` tells requests and answers in order."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, 2 * (T + 1) * MOST)
        self.waiting: list[dict[str, Any]] = []
        self.log: list[tuple[str, int]] = []
        self.served = 0
        self.budget_is_used = False

    def send(self, message: dict[str, Any]) -> None:
        assert not self.waiting, "asked before the last answer was read: the buffer would be overwritten"
        rows = message.get("rows")
        if rows is None:
            self.waiting.append({"budget_s": 8.0} if "start" in message else {})
            return
        self.log.append(("asked", rows))
        if not 1 <= rows <= MOST:
            self.waiting.append({"error": f"next_batch(rows) takes 1 to {MOST} rows, got {rows}"})
            return
        if not self.budget_is_used:
            numbers = np.repeat(np.arange(self.served, self.served + rows, dtype=np.uint16), T + 1)
            np.frombuffer(self.buffer, np.uint16, numbers.size)[:] = numbers
            self.served += rows
        self.waiting.append({"rows": rows})

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        return self.waiting.pop(0)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    one = Supervisor()
    run = client.Run(vocab_size=1000, seq_len=T, budget_s=10.0, seed=0, device="cpu", scratch="")
    run.channel, run.batch_buffer = one, one.buffer  # type: ignore[assignment]
    monkeypatch.setattr(client, "_run", run)
    client.start()
    return one


def rows_of(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    inputs_BT, targets_BT = batch
    assert inputs_BT.shape == targets_BT.shape
    assert inputs_BT.dtype == targets_BT.dtype == torch.int64
    assert torch.equal(inputs_BT, targets_BT)
    return inputs_BT[:, 0].tolist()


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [1, 2, 4, 8, 16], [16, 8, 4, 2, 1], [5, 1, 7, 7, 3, 12, 1, 1]])
def test_rows_come_in_order_whatever_the_batches(supervisor: Supervisor, sizes: list[int]) -> None:
    found = [rows_of(client.next_batch(size)) for size in sizes]
    assert [len(rows) for rows in found] == sizes
    assert [row for rows in found for row in rows] == list(range(sum(sizes)))


def test_the_budget_is_what_the_supervisor_grants_at_the_start(supervisor: Supervisor) -> None:
    assert client.budget_s() == 8.0  # 10 were planned
    assert client._run is not None
    assert client._run.started_at_s is not None
    client._run.started_at_s -= 4.0
    assert client.progress() == pytest.approx(0.5, abs=0.05)


def test_the_next_batch_is_asked_for_before_it_is_wanted_and_only_once(supervisor: Supervisor) -> None:
    for _ in range(3):
        client.next_batch(4)
    assert supervisor.log == [("asked", 4)] * 4
    assert len(supervisor.waiting) == 1


def test_a_batch_stays_as_it_was_when_the_next_one_comes(supervisor: Supervisor) -> None:
    first, second = client.next_batch(3), client.next_batch(3)
    assert rows_of(first) == [0, 1, 2]
    assert rows_of(second) == [3, 4, 5]


def test_once_the_budget_is_used_no_new_text_comes_but_what_was_asked_for(supervisor: Supervisor) -> None:
    client.next_batch(4)
    supervisor.budget_is_used = True
    assert rows_of(client.next_batch(4)) == [4, 5, 6, 7]  # asked for ahead
    assert rows_of(client.next_batch(4)) == [4, 5, 6, 7]
    assert rows_of(client.next_batch(4)) == [4, 5, 6, 7]
    assert supervisor.served == 8


@pytest.mark.parametrize("rows", [0, -1, MOST + 1])
def test_a_batch_of_an_impossible_size_is_refused(supervisor: Supervisor, rows: int) -> None:
    with pytest.raises(ValueError, match=f"takes 1 to {MOST} rows"):
        client.next_batch(rows)


def test_waiting_for_text_is_counted(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(client.time, "monotonic", lambda: next(clock))
    client.next_batch(4)
    assert client._joined().waited_s == 1.0


def test_there_is_no_text_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    run = client.Run(vocab_size=1000, seq_len=T, budget_s=10.0, seed=0, device="cpu", scratch="")
    run.channel = Supervisor()  # type: ignore[assignment]
    monkeypatch.setattr(client, "_run", run)
    with pytest.raises(NotJoined, match="start"):
        client.next_batch(4)
