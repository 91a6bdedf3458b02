"""A node's signs of life and its result, as artifacts of its flow run on the Prefect server: the one thing both sides see."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import get_run_context

from flows import wire
from frozen_env.contract import RunResult

BEAT_EVERY_S = 5.0
DELIVERY_LIMIT_S = 600.0  # a server that is down for longer loses the result; the candidate is then run again
BEAT, RESULT = "autoresearch-beat", "autoresearch-result"

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats every few seconds while the candidate runs, then delivers its result. A beat that fails is left out."""

    def __init__(self) -> None:
        self._flow_run_id: UUID = get_run_context().flow_run.id  # type: ignore[union-attr]
        self._artifact_id: UUID | None = None
        self._told: dict[str, Any] = {"node": socket.gethostname(), "pid": os.getpid()}
        self._count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def event(self, event: dict[str, Any]) -> None:
        """Take a host's event; the next beat tells the latest."""
        if event["event"] == "report":
            _, _, self._told["fraction"], self._told["loss"], _ = event["report"]
        elif event["event"] in ("started", "scoring"):
            self._told |= event

    def deliver(self, result: RunResult) -> None:
        """Leave the result on the server, waiting for it when it is down. Raises what it last answered, in the end."""
        data = wire.pack(result.to_json())
        deadline_s = time.monotonic() + DELIVERY_LIMIT_S
        pause_s = 0.5
        while True:
            try:
                with get_client(sync_client=True) as client:
                    client.create_artifact(ArtifactCreate(type=RESULT, data=data, flow_run_id=self._flow_run_id))
                return
            except Exception as error:  # httpx and Prefect have many; all mean the same here
                if time.monotonic() > deadline_s:
                    raise
                log.warning("the Prefect server does not take the result, trying again: %s", error)
            time.sleep(pause_s)
            pause_s = min(10.0, 2 * pause_s)

    def _beat_on(self) -> None:
        while True:
            try:
                self._beat()
            except Exception as error:  # the server is down for a moment
                log.debug("a heartbeat did not arrive: %s", error)
            if self._stop.wait(BEAT_EVERY_S):
                return

    def _beat(self) -> None:
        self._count += 1
        data = self._told | {"beat": self._count}
        with get_client(sync_client=True) as client:
            if self._artifact_id is None:
                made = client.create_artifact(ArtifactCreate(type=BEAT, data=data, flow_run_id=self._flow_run_id))
                self._artifact_id = made.id
            else:
                client.update_artifact(self._artifact_id, ArtifactUpdate(data=data))
