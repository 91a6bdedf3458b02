"""Runs of a file beside the one that an experiment records: the noise floor, and the re-runs that confirm or refute.

Each is a committed row of its own as soon as it is done, keyed by the program and the seed, so that a campaign killed
between two of them pays for none twice. Who needs what from them is arl_core.second_look's business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from arl_core.memory import Memory
from arl_core.memory_rows import clean
from arl_core.outcome import Outcome
from frozen_env.contract import RunResult


class Role(StrEnum):
    """Why a run was done."""

    FIRST = "first"  # on the campaign's seed: the run that asked for others
    BASELINE = "baseline"  # the untouched target on a fresh seed
    CANDIDATE = "candidate"  # a candidate on a fresh seed
    INCUMBENT = "incumbent"  # its incumbent on that seed, where it had not run there before


@dataclass(frozen=True)
class Repeat:
    """One run. `index` is the experiment that it was done for, `source_hash` the program that ran.

    value is None when the run gave none; reason then says why. level is the error that a candidate's test may use, on its
    FIRST row: that row opens the test. against is the program of the incumbent that it is compared with.
    """

    campaign_id: str
    index: int
    role: Role
    source_hash: str
    seed: int
    value: float | None
    reason: str = ""
    level: float | None = None
    against: str = ""
    seconds: float = 0.0
    created_at: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", Role(self.role))


_COLUMNS = tuple(field.name for field in fields(Repeat) if field.name not in ("campaign_id", "index"))
_SELECT = f"""select c.id, r.idx, {", ".join("r." + name for name in _COLUMNS)}
              from m.repeats r join m.campaigns c on c.no = r.campaign"""


class Repeats:
    """The rows of `repeats` in a campaign's memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def add(
        self,
        repeat: Repeat,
        *,
        result: RunResult | None = None,
        confirmed: tuple[int, float, int] | None = None,
        deposed: tuple[int, Outcome] | None = None,
    ) -> None:
        """Commit one run. ValueError when the program has a row for this seed and role already.

        `result` is kept whole until its experiment is committed, so that a first run need not be repeated. `confirmed`
        (index, mean, runs) is the incumbent's record with this run; it waits with this row and takes effect with the
        experiment's commit: until then its second look must find the memory as it found it, should the campaign be killed.
        `deposed` (index, outcome) takes an incumbent's place away with this row: its experiment has that outcome from now on.
        """
        with self.memory.writing(repeat.campaign_id) as (db, no):
            key = [no, repeat.source_hash, repeat.seed, repeat.role.value]
            query = "select 1 from m.repeats where campaign = ? and source_hash = ? and seed = ? and role = ?"
            if db.execute(query, key).fetchone():
                raise ValueError(
                    f"{repeat.role} of {repeat.source_hash[:12]} on seed {repeat.seed} is committed already"
                )
            packed = json.dumps(result.to_json()) if result is not None else None
            if confirmed is not None:
                packed = json.dumps(dict(zip(("index", "mean", "runs"), confirmed, strict=True)))
            row = [no, repeat.index, *(getattr(repeat, name) for name in _COLUMNS), packed]
            names = ", ".join(["campaign", "idx", *_COLUMNS, "result"])
            db.execute(f"insert into m.repeats ({names}) values ({', '.join('?' * len(row))})", row)
            if deposed is not None:
                index, outcome = deposed
                command = """update m.experiments set status = ?, cause = ?, reason = ?, value = null,
                             confirmed_value = null, confirmations = 0 where campaign = ? and idx = ?"""
                db.execute(command, [outcome.status.value, outcome.cause.value, clean(outcome.reason), no, index])

    def of(self, campaign_id: str) -> list[Repeat]:
        """Return all of a campaign, in the order in which they were committed."""
        return self._select("where c.id = ?", [campaign_id])

    def earlier(
        self, environment_digest: str, campaign_id: str, limit: int = 2000, *, device: str = ""
    ) -> list[Repeat]:
        """Return the latest of other campaigns on the very same frozen environment and device, oldest first.

        `device`: of this campaign, for as long as its experiment 0 is not committed.
        """
        alike = self.memory.campaigns_alike(campaign_id, device)
        where = "where c.environment_digest = ? and c.id <> ?"
        rows = self._select(where, [environment_digest, campaign_id])
        return [row for row in rows if row.campaign_id in alike][-limit:]

    def first_result(self, campaign_id: str, source_hash: str) -> RunResult | None:
        """Return the first run of a program whose experiment was interrupted during its re-runs; None when there is none."""
        query = """select r.result from m.repeats r join m.campaigns c on c.no = r.campaign
                   where c.id = ? and r.source_hash = ? and r.role = 'first' and r.result is not null"""
        with self.memory.reading() as db:
            row = db.execute(query, [campaign_id, source_hash]).fetchone()
        return RunResult.from_json(json.loads(row[0])) if row else None

    def _select(self, where: str, parameters: Sequence[Any]) -> list[Repeat]:
        with self.memory.reading() as db:
            if not _has_table(db):
                return []
            rows = db.execute(f"{_SELECT} {where} order by r.rowid", parameters).fetchall()
        return [Repeat(row[0], row[1], **dict(zip(_COLUMNS, row[2:], strict=True))) for row in rows]


def _has_table(db: Any) -> bool:
    """A reader may find a memory of an earlier version, which has no repeats."""
    query = "select 1 from duckdb_tables() where database_name = 'm' and table_name = 'repeats'"
    return bool(db.execute(query).fetchone())
