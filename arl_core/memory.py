"""The campaign's memory: every experiment, its curve, and the state to resume from, in one DuckDB file.

DuckDB lets one process write and shuts every other out, readers included, while it does. So nobody holds the file:
each method attaches it to a DuckDB instance in memory, works, and detaches (0.5 ms; a plain duckdb.connect() costs 15).
A second process waits its turn and, past `wait_s`, is told who holds the file. That only one *campaign* runs on a
memory is the business of campaign_lock(), a lock file of its own: DuckDB's lock comes and goes with every method.

commit_iteration() is the commit of an iteration: one transaction, on disk when it returns. No file that we cannot read
is ever deleted, replaced or written to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import random
import re
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb

from arl_core.errors import CampaignLocked, ConfigError, MemoryFileError
from arl_core.records import Campaign, Experiment, State, finite_json, utc_now, verdict_from_json
from frozen_env.contract import Report

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
RECENT = 32  # experiments that a prompt shows: the most recent…
TOP = 5  # …and the best
STATES_KEPT = 3  # the last states, so that a torn checkpoint can fall back to the one before
ROW_GROUP = 8192  # rows; large ones make commits slow, small ones the queries
FRESH = 128  # experiments whose details wait to be moved
MIN_FREE_MB = 64  # a commit is refused below this; a night of experiments takes a few MB

# Campaigns are few and experiments many, hence the short integer `campaign` (campaigns.no) in the long tables. They
# have no index: rows are appended in order, so that DuckDB's zone maps find a campaign's block, its last 32 and its
# best 5 in milliseconds among a million, while a key would slow every commit.
#
# A commit rewrites the last group of rows of every table that it touches. What is bulky (texts, curves) therefore waits
# in a small table and moves to the large one in batches, and the states of other campaigns stand apart from the present
# one's: a commit costs the same after a thousand experiments as after ten.
_SCHEMA = """
create table schema_version (version integer not null);
create table campaigns (
    no integer not null, id varchar not null, preset varchar, config varchar, environment_digest varchar,
    seed hugeint, started_at varchar, problem varchar, metric varchar, direction varchar, status varchar,
    base blob  -- the first source, packed: sources are stored as differences from it
);
create table experiments (
    campaign integer not null, idx integer not null, status varchar not null, parent_idx integer, cause varchar,
    reason varchar, summary varchar, diff varchar, source_hash varchar, metric varchar, value double, direction varchar,
    estimate double, incumbent_value double, reward double, reward_terms varchar, repairs varchar, costs varchar,
    peak_memory_mb double, tokens bigint, seed hugeint, environment_digest varchar, sandbox varchar, created_at varchar,
    policy_step bigint, confirmed_value double, confirmations integer, extra varchar,
    reports integer,  -- how many there are
    source_key ubigint  -- the first 8 bytes of source_hash: novelty is one scan of integers
);
create table details (
    campaign integer not null, idx integer not null, completion varchar, verdicts varchar,
    source blob, prompt blob, log blob,  -- packed: see _pack()
    report_step bigint[], report_elapsed_s double[], report_fraction double[], report_loss double[], report_lr double[]
);
create table details_fresh as from details;
create table states (  -- seq, not a time, orders them: clocks jump
    campaign integer not null, seq bigint not null, idx integer not null, saved_at varchar, data_json varchar, data blob
);
create table states_elsewhere as from states;
"""

# Runs beside an experiment's own: arl_core/repeats.py. Version 2 had none; a writer adds it on opening.
_REPEATS = """
create table if not exists {prefix}repeats (
    campaign integer not null, idx integer not null, role varchar not null, source_hash varchar not null,
    seed hugeint not null, value double, reason varchar, level double, against varchar, seconds double,
    created_at varchar, result varchar  -- a first run whole, until its experiment is committed
);
"""

_abandoned: list[Any] = []  # a parent's engines in a forked child: destroying one waits for threads that are not there
_process_locks: dict[str, threading.RLock] = {}
_process_locks_guard = threading.Lock()


class Memory:
    """The memory file at `path`. Cheap to hold: the file itself is open only inside a method. Safe across threads.

    A writer's file is created when missing; `read_only` (reports) wants it to exist and never changes it. wait_s bounds
    how long a method waits for another process to let go of the file.

    Raises MemoryFileError when the file is corrupt, held by another process for too long, written by a newer version,
    not a memory at all, or when the disk is full; each message says what to do, and nothing is lost.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False, wait_s: float = 30.0) -> None:
        self.path = Path(path).resolve()
        self.read_only = read_only
        self.wait_s = wait_s
        self._engine: Any = None
        self._engine_pid = 0
        self._bases: dict[int, bytes] = {}
        with _process_locks_guard:
            self._lock = _process_locks.setdefault(str(self.path), threading.RLock())
        if not self.path.exists():
            if read_only:
                raise MemoryFileError(f"there is no memory at {self.path}; run a campaign first, or give another path")
            self._create()
        with self._open() as db:
            version = self._check_schema(db)
        if version == 2 and not read_only:
            with self._open(write=True) as db:
                db.execute(_REPEATS.format(prefix="m."))
                db.execute("update m.schema_version set version = ?", [SCHEMA_VERSION])

    def close(self) -> None:
        """Let the engine go; the next method makes a new one. Nothing is lost without it: the file is shut already."""
        with self._lock:
            if self._engine is not None and self._engine_pid == os.getpid():
                self._engine.close()
            self._engine, self._engine_pid = None, 0

    # --- campaigns ----------------------------------------------------------------------------------------------------

    def create_campaign(self, campaign: Campaign) -> None:
        """Write a new campaign down. ValueError when its id is taken."""
        with self._open(write=True) as db:
            if db.execute("select 1 from m.campaigns where id = ?", [campaign.id]).fetchone():
                raise ValueError(f"campaign {campaign.id!r} is in {self.path} already")
            (no,) = db.execute("select coalesce(max(no), 0) + 1 from m.campaigns").fetchone()
            values = [getattr(campaign, name) for name in _CAMPAIGN]
            values[_CAMPAIGN.index("config")] = _dumps(campaign.config)
            row = [no, *values, None]
            db.execute(f"insert into m.campaigns values ({', '.join('?' * len(row))})", row)

    def campaigns(self) -> list[Campaign]:
        """Return all campaigns, oldest first."""
        with self._open() as db:
            return [_campaign(row) for row in db.execute(f"{_SELECT_CAMPAIGN} order by no").fetchall()]

    def get_campaign(self, campaign_id: str = "latest") -> Campaign:
        """Return one campaign by its id, or the one started last. ConfigError when there is no such campaign."""
        with self._open() as db:
            no = self._number(db, campaign_id)
            return _campaign(db.execute(f"{_SELECT_CAMPAIGN} where no = ?", [no]).fetchone())

    def set_status(self, campaign_id: str, status: str) -> None:
        """Note how the campaign stands: running, finished, interrupted, failed."""
        with self._open(write=True) as db:
            no = self._number(db, campaign_id)
            db.execute("update m.campaigns set status = ? where no = ?", [status, no])

    # --- the commit ---------------------------------------------------------------------------------------------------

    def commit_iteration(self, experiment: Experiment, state: State) -> None:
        """Write an experiment and the state after it, in one transaction: after this returns, both are on disk.

        The state is filed under the experiment's index. ValueError when that experiment is committed already,
        ConfigError when the campaign is unknown, MemoryFileError when it cannot be written; then nothing of it is.
        """
        with self._open(write=True) as db:
            no = self._number(db, experiment.campaign_id)
            key = [no, experiment.index]
            if db.execute("select 1 from m.experiments where campaign = ? and idx = ?", key).fetchone():
                raise ValueError(f"experiment {experiment.index} of {experiment.campaign_id} is committed already")
            base = self._base(db, no)
            if not base and experiment.source:
                base = experiment.source.encode("utf-8", "surrogatepass")
                db.execute("update m.campaigns set base = ? where no = ?", [zlib.compress(base, 9), no])
            _insert(db, "experiments", _to_row(no, experiment))
            _insert(db, "details_fresh", _to_details(no, experiment, base))
            if db.execute("select count(*) from m.details_fresh").fetchone()[0] >= FRESH:
                db.execute("insert into m.details from m.details_fresh order by campaign, idx")
                db.execute("delete from m.details_fresh")
            db.execute("update m.repeats set result = null where campaign = ? and idx = ? and result is not null", key)
            self._write_state(db, no, experiment.index, state)

    def commit_state(self, campaign_id: str, state: State) -> None:
        """Replace the state without adding an experiment (the noise floor was measured, the policy warmed up…)."""
        with self._open(write=True) as db:
            no = self._number(db, campaign_id)
            self._write_state(db, no, state.index, state)

    def state(self, campaign_id: str, *, back: int = 0) -> State | None:
        """Return the state to resume from, None before the first. back=1 is the one before it, down to STATES_KEPT."""
        with self._open() as db:
            query = f"select data_json, data, idx from {_STATES} where campaign = ? order by seq desc limit 1 offset ?"
            row = db.execute(query, [self._number(db, campaign_id), back]).fetchone()
        return State(json.loads(row[0]), bytes(row[1]), row[2]) if row else None

    # --- questions ----------------------------------------------------------------------------------------------------

    def recent(self, campaign_id: str, n: int = RECENT, *, whole: bool = False) -> list[Experiment]:
        """Return the n experiments last in line, newest first.

        What a prompt does not show is left empty unless `whole`: reports, verdicts, source, prompt, completion and log.
        """
        return self._select(campaign_id, "order by idx desc limit ?", n, details=_WHOLE if whole else ())

    def top(self, campaign_id: str, n: int = TOP, *, whole: bool = False) -> list[Experiment]:
        """Return the n best *measured* experiments, best first in the metric's direction; forecasts do not count.

        The mean over fresh seeds goes before the value of a single run.

        `whole` as in recent().
        """
        best = f"and {_MEASURED} {{best}} limit ?"
        return self._select(campaign_id, best, n, details=_WHOLE if whole else ())

    def for_prompt(
        self, campaign_id: str, recent: int = RECENT, top: int = TOP
    ) -> tuple[list[Experiment], list[Experiment]]:
        """Return recent() and top() from one look at the file."""
        with self._open():
            return self.recent(campaign_id, recent), self.top(campaign_id, top)

    def incumbent(self, campaign_id: str) -> Experiment | None:
        """Return the best experiment that was kept, None before the first.

        Of confirmed ones the last promoted: each beat the one before it, on common seeds, whatever their own means are.
        Of single runs the one with the best value, not the last: those that run side by side may be committed out of order.
        """
        kept = f"and status = 'kept' and {_MEASURED}"
        with self._open():
            promoted = self._select(campaign_id, f"{kept} and confirmations > 0", details=())
            last = max(promoted, key=lambda one: one.promotion, default=None)
            if last is not None and last.promotion:
                return self.experiment(campaign_id, last.index)
            return next(iter(self._select(campaign_id, f"{kept} {{best}} limit 1")), None)

    def experiment(self, campaign_id: str, index: int) -> Experiment | None:
        """Return one experiment, None when it was never committed."""
        return next(iter(self._select(campaign_id, "and idx = ?", index)), None)

    def experiments(self, campaign_id: str, since: int = 0) -> list[Experiment]:
        """Return all experiments from index `since` on, in order."""
        return self._select(campaign_id, "and idx >= ? order by idx", since)

    def next_index(self, campaign_id: str) -> int:
        """Return the index after the last one committed; 0 when there is none."""
        with self._open() as db:
            query = "select coalesce(max(idx) + 1, 0) from m.experiments where campaign = ?"
            return int(db.execute(query, [self._number(db, campaign_id)]).fetchone()[0])

    def seen(self, source_hash: str, campaign_id: str | None = None) -> tuple[str, int] | None:
        """Return (campaign id, index) of the first experiment whose normalised source this was, None when it is new.

        Looks in one campaign, or in all. An experiment without a source (an edit that did not apply) is never found.
        """
        if not source_hash:
            return None
        query = """select c.id, e.idx from m.experiments e join m.campaigns c on c.no = e.campaign
                   where e.source_key = ? and e.source_hash = ? {} order by e.campaign, e.idx limit 1"""
        with self._open() as db:
            one = [] if campaign_id is None else [self._number(db, campaign_id)]
            row = db.execute(query.format("and e.campaign = ?" if one else ""), [_key(source_hash), source_hash, *one])
            found = row.fetchone()
        return (found[0], int(found[1])) if found else None

    def curves(self, campaign_id: str) -> dict[int, tuple[Report, ...]]:
        """Return the training curve of every experiment that reported anything, by index."""
        found = self._select(campaign_id, "and reports > 0 order by idx", details=_REPORT_LISTS)
        return {experiment.index: experiment.reports for experiment in found}

    def completed_runs(self, environment_digest: str, limit: int = 500) -> list[Experiment]:
        """Return the latest runs that trained to the end and were measured in this very frozen environment, from all
        campaigns, oldest first: what the forecaster is calibrated on. Their texts and verdicts are left empty."""
        where = f"""where environment_digest = ? and status in ('kept', 'discarded') and {_MEASURED}
                    and reports > 0 order by campaign desc, idx desc limit ?"""
        with self._open() as db:
            return self._experiments(db, where, [environment_digest, limit], _REPORT_LISTS)[::-1]

    def export(self, target: str | Path, campaign_id: str = "latest") -> int:
        """Write a campaign as JSON lines, the campaign first, then every experiment in full; return their number.

        Replaces `target` only when the whole is written.
        """
        campaign = self.get_campaign(campaign_id)
        target = Path(target)
        partial = target.with_name(target.name + ".partial")
        experiments = self.experiments(campaign.id)
        with partial.open("w", encoding="utf-8") as out:
            for record in (campaign.to_json(), *(experiment.to_json() for experiment in experiments)):
                out.write(_dumps(record) + "\n")
        partial.replace(target)
        return len(experiments)

    # --- for tables of their own (arl_core/repeats.py) ----------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Attach the file as `m` for one block of queries."""
        with self._open() as db:
            yield db

    @contextlib.contextmanager
    def writing(self, campaign_id: str) -> Iterator[tuple[Any, int]]:
        """One transaction: yields the database and the campaign's number. On disk when the block ends."""
        with self._open(write=True) as db:
            yield db, self._number(db, campaign_id)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _select(
        self, campaign_id: str, rest: str, *parameters: Any, details: tuple[str, ...] | None = None
    ) -> list[Experiment]:
        with self._open() as db:
            no = self._number(db, campaign_id)
            if "{best}" in rest:
                (direction,) = db.execute("select direction from m.campaigns where no = ?", [no]).fetchone()
                rest = rest.format(
                    best=f"order by coalesce(confirmed_value, value) {'asc' if direction == 'lower' else 'desc'}, idx"
                )
            details = _WHOLE if details is None else details
            return self._experiments(db, f"where campaign = ? {rest}", [no, *parameters], details)

    def _experiments(
        self, db: Any, where: str, parameters: Sequence[Any], details: tuple[str, ...]
    ) -> list[Experiment]:
        rows = db.execute(f"select {', '.join(_LIGHT)} from m.experiments {where}", parameters).fetchall()
        ids = dict(db.execute("select no, id from m.campaigns").fetchall())
        found = {row[:2]: dict(zip(_LIGHT, row, strict=True)) for row in rows}
        if details and found:
            query = f"""select campaign, idx, {", ".join(details)} from {_DETAILS}
                        join (select unnest(?::integer[]) as campaign, unnest(?::integer[]) as idx) using (campaign, idx)"""
            for row in db.execute(query, [list(column) for column in zip(*found, strict=True)]).fetchall():
                found[row[:2]] |= zip(details, row[2:], strict=True)
        bases = {no: self._base(db, no) for no in {no for no, _ in found}} if details else {}
        return [_from_row(ids[no], row, bases.get(no, b"")) for (no, _), row in found.items()]

    def _number(self, db: Any, campaign_id: str) -> int:
        where, key = ("", []) if campaign_id == "latest" else ("where id = ?", [campaign_id])
        row = db.execute(f"select no from m.campaigns {where} order by no desc limit 1", key).fetchone()
        if row is None:
            latest = db.execute("select id from m.campaigns order by no desc limit 5").fetchall()
            known = ", ".join(name for (name,) in latest) or "none"
            raise ConfigError(f"no campaign {campaign_id!r} in {self.path}; the latest are: {known}")
        return int(row[0])

    def _base(self, db: Any, no: int) -> bytes:
        """Return the source that this campaign's sources are packed against; it never changes once it is there."""
        if no not in self._bases:
            (packed,) = db.execute("select base from m.campaigns where no = ?", [no]).fetchone()
            if packed is None:
                return b""
            self._bases[no] = zlib.decompress(packed)
        return self._bases[no]

    def _write_state(self, db: Any, no: int, index: int, state: State) -> None:
        if db.execute("select 1 from m.states where campaign <> ? limit 1", [no]).fetchone():
            db.execute("insert into m.states_elsewhere from m.states where campaign <> ?", [no])
            db.execute("delete from m.states where campaign <> ?", [no])
        (seq,) = db.execute(f"select coalesce(max(seq) + 1, 0) from {_STATES} where campaign = ?", [no]).fetchone()
        row = [no, seq, index, utc_now(), _dumps(state.values), state.blob]
        db.execute("insert into m.states values (?, ?, ?, ?, ?, ?)", row)
        for table in ("states", "states_elsewhere"):
            db.execute(f"delete from m.{table} where campaign = ? and seq <= ?", [no, seq - STATES_KEPT])

    def _check_schema(self, db: Any) -> int:
        query = "select count(*) from duckdb_tables() where database_name = 'm' and table_name = 'schema_version'"
        if not db.execute(query).fetchone()[0]:
            raise MemoryFileError(f"{self.path} is a DuckDB file but not a memory of ours; give another path")
        (version,) = db.execute("select max(version) from m.schema_version").fetchone()
        if version not in (2, SCHEMA_VERSION):
            raise MemoryFileError(
                f"{self.path} has schema {version}, this version reads {SCHEMA_VERSION}; "
                "install the version that wrote it, or give another path"
            )
        return int(version)

    def _create(self) -> None:
        """Write an empty memory aside and link it into place, so that no half-made file is ever found there."""
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_space()
            partial.unlink(missing_ok=True)
            engine = self._new_engine()
            engine.execute(f"attach {_quote(partial)} as m (row_group_size {ROW_GROUP})")
            engine.execute("use m")
            engine.execute(_SCHEMA)
            engine.execute(_REPEATS.format(prefix=""))
            engine.execute("insert into m.schema_version values (?)", [SCHEMA_VERSION])
            engine.execute("checkpoint m")  # only the file itself is linked, not its log
            engine.execute("use memory")
            engine.execute("detach m")
            engine.close()
            with contextlib.suppress(FileExistsError):  # another process was faster; its file is as good
                os.link(partial, self.path)
        except (OSError, duckdb.Error) as error:
            raise MemoryFileError(f"cannot create a memory at {self.path}: {_first_line(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    @contextlib.contextmanager
    def _open(self, write: bool = False) -> Iterator[Any]:
        """Attach the file as `m` for one block; a block inside a block shares it. write=True is a transaction."""
        if write and self.read_only:
            raise ValueError("this memory was opened read_only")
        with self._lock:
            if self._attached_here():
                yield self._engine
                return
            if write:
                self._check_space()
            db = self._attach(read_only=not write)
            self._open_in = threading.get_ident()
            try:
                if write:
                    db.execute("begin")
                yield db
                if write:
                    db.execute("commit")
            except duckdb.Error as error:
                raise self._explain(error) from error
            finally:
                self._open_in = 0
                self._detach(db)

    _open_in = 0

    def _attached_here(self) -> bool:
        return self._open_in == threading.get_ident() and self._engine_pid == os.getpid()

    def _attach(self, read_only: bool) -> Any:
        if self._engine_pid != os.getpid():  # first use, or a fork: an engine belongs to the process that made it
            _abandoned.append(self._engine)
            self._engine, self._engine_pid = self._new_engine(), os.getpid()
        how = "read_only" if read_only else f"row_group_size {ROW_GROUP}"
        command = f"attach {_quote(self.path)} as m ({how})"
        deadline = time.monotonic() + self.wait_s
        pause_s = 0.005
        while True:
            try:
                self._engine.execute(command)
                return self._engine
            except duckdb.Error as error:
                if "Could not set lock" not in str(error) or time.monotonic() >= deadline:
                    raise self._explain(error) from error
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # two who wait must not wait in step
            pause_s = min(0.25, 1.5 * pause_s)

    def _detach(self, db: Any) -> None:
        """Let the file go. A transaction that is still open was interrupted: it is rolled back."""
        with contextlib.suppress(duckdb.Error):
            db.execute("rollback")
        try:
            db.execute("detach m")
        except duckdb.Error as error:
            # What was committed is safe in the write-ahead log and folded in when the file is next opened.
            log.warning("%s: could not fold the log in: %s", self.path, _first_line(error))
            with contextlib.suppress(duckdb.Error):
                db.close()
            self._engine, self._engine_pid = None, 0

    def _new_engine(self) -> Any:
        # One thread: no helpers beside the candidate's, and a million rows need no more. No temp folder, no network.
        config = {
            "threads": 1,
            "memory_limit": "1GB",
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        return duckdb.connect(":memory:", config=config)

    def _check_space(self) -> None:
        free_mb = shutil.disk_usage(self.path.parent).free / 2**20
        if free_mb < MIN_FREE_MB:
            raise MemoryFileError(
                f"no disk space for {self.path}: {free_mb:.0f} MB free, {MIN_FREE_MB} wanted; "
                "make room and resume, nothing is lost"
            )

    def _explain(self, error: Exception) -> MemoryFileError:
        text = _first_line(error)
        if "Could not set lock" in text:
            holder = re.search(r"\(PID (\d+)\)", text)
            who = f"process {holder[1]}" if holder else "another process"
            return MemoryFileError(
                f"{self.path} is held by {who} (waited {self.wait_s:g} s); close what has it open and try again"
            )
        if "No space left" in text or "File too large" in text:
            return MemoryFileError(f"no disk space for {self.path}: {text}; make room and resume, nothing is lost")
        if "Permission denied" in text or "read-only" in text.lower():
            return MemoryFileError(f"{self.path} cannot be opened: {text}; check its owner and rights")
        return MemoryFileError(
            f"{self.path} cannot be used: {text}; nothing was changed: move it aside to start anew, or restore a copy"
        )


# --- rows -------------------------------------------------------------------------------------------------------------

_CAMPAIGN = tuple(field.name for field in dataclasses.fields(Campaign))
_SELECT_CAMPAIGN = f"select {', '.join(_CAMPAIGN)} from m.campaigns"
_REPORT_LISTS = ("report_step", "report_elapsed_s", "report_fraction", "report_loss", "report_lr")
_PLAIN = (  # columns that hold an attribute as it is
    "status", "cause", "reason", "summary", "diff", "source_hash", "metric", "value", "direction", "estimate",
    "incumbent_value", "reward", "peak_memory_mb", "tokens", "seed", "environment_digest", "sandbox", "created_at",
    "policy_step", "confirmed_value", "confirmations",
)  # fmt: skip
_JSON = ("reward_terms", "costs", "repairs", "extra")
_PACKED = ("source", "prompt", "log")
_LIGHT = ("campaign", "idx", "parent_idx", *_PLAIN, *_JSON)
_WHOLE = ("completion", "verdicts", *_PACKED, *_REPORT_LISTS)
_DETAILS = "(from m.details union all from m.details_fresh)"
_STATES = "(from m.states union all from m.states_elsewhere)"
_MEASURED = "value is not null and not isnan(value)"


def _insert(db: Any, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    db.execute(f"insert into m.{table} ({', '.join(row)}) values ({marks})", list(row.values()))


def _to_row(no: int, experiment: Experiment) -> dict[str, Any]:
    row: dict[str, Any] = {"campaign": no, "idx": experiment.index, "parent_idx": experiment.parent_index}
    row |= {name: _clean(getattr(experiment, name)) for name in _PLAIN}
    row |= {name: _dumps(getattr(experiment, name)) for name in _JSON}
    row["reports"] = len(experiment.reports)
    row["source_key"] = _key(experiment.source_hash)
    return row


def _to_details(no: int, experiment: Experiment, base: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"campaign": no, "idx": experiment.index, "completion": _clean(experiment.completion)}
    row["verdicts"] = _dumps([dataclasses.asdict(verdict) for verdict in experiment.verdicts])
    row |= {name: _pack(getattr(experiment, name), base) for name in _PACKED}
    for column in _REPORT_LISTS:
        row[column] = [getattr(report, column.removeprefix("report_")) for report in experiment.reports]
    return row


def _from_row(campaign_id: str, row: dict[str, Any], base: bytes) -> Experiment:
    fields: dict[str, Any] = {name: row[name] for name in _PLAIN}
    fields |= {name: json.loads(row[name]) for name in _JSON}
    for name in ("reward_terms", "costs"):
        fields[name] = {key: float(value) for key, value in fields[name].items()}
    fields["repairs"] = tuple(fields["repairs"])
    if "completion" in row:
        fields |= {name: _unpack(row[name], base) for name in _PACKED}
        fields["completion"] = row["completion"]
        fields["verdicts"] = tuple(verdict_from_json(v) for v in json.loads(row["verdicts"]))
    if "report_step" in row:
        fields["reports"] = _reports([row[name] for name in _REPORT_LISTS])
    return Experiment(campaign_id, row["idx"], parent_index=row["parent_idx"], **fields)


def _reports(lists: Sequence[list[Any]]) -> tuple[Report, ...]:
    return tuple(Report(*values) for values in zip(*lists, strict=True))


def _campaign(row: tuple[Any, ...]) -> Campaign:
    fields = dict(zip(_CAMPAIGN, row, strict=True))
    return Campaign(**{**fields, "config": json.loads(fields["config"])})


def _pack(text: str, base: bytes) -> bytes:
    """Compress text with the campaign's first source as dictionary: an edited 15 KB source takes about 150 bytes."""
    if not text:
        return b""
    packer = zlib.compressobj(9, zdict=base) if base else zlib.compressobj(9)
    return packer.compress(text.encode("utf-8", "surrogatepass")) + packer.flush()


def _unpack(data: bytes, base: bytes) -> str:
    if not data:
        return ""
    needs_base = data[1] & 0x20  # FDICT of RFC 1950: what came before the campaign's first source was packed without
    unpacker = zlib.decompressobj(zdict=base) if needs_base else zlib.decompressobj()
    return unpacker.decompress(data).decode("utf-8", "surrogatepass")


def _key(source_hash: str) -> int:
    """The hash's first 8 bytes as an integer; 0 when there is no hash. Text that is no hex digest has its own key."""
    try:
        return int(source_hash[:16] or "0", 16)
    except ValueError:
        return zlib.crc32(source_hash.encode("utf-8", "surrogatepass"))


def _clean(value: Any) -> Any:
    """DuckDB takes UTF-8 only: a lone surrogate from a candidate's output becomes a question mark."""
    return str(value).encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _dumps(value: Any) -> str:
    return json.dumps(finite_json(value), allow_nan=False)


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- one campaign at a time -------------------------------------------------------------------------------------------

_held: set[int] = set()  # lock files that this process holds


@contextlib.contextmanager
def campaign_lock(memory_path: str | Path) -> Iterator[Path]:
    """Hold the right to run a campaign on this memory: flock on `<memory>.lock`; the kernel ends it with the process.

    The file stays behind: removing it would let two campaigns hold two files of one name. Raises CampaignLocked,
    naming the holder, when another campaign (in this process too) has it; MemoryFileError when it cannot be opened.
    """
    memory_path = Path(memory_path).resolve()
    path = memory_path.with_name(memory_path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise MemoryFileError(f"cannot open the campaign lock {path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise MemoryFileError(f"cannot lock {path}: {error.strerror}") from error
            raise CampaignLocked(_who_holds(descriptor, memory_path)) from None
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        _held.add(descriptor)
        try:
            yield path
        finally:
            _held.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a child's copy too, if one was forked this instant
    finally:
        os.close(descriptor)


def _who_holds(descriptor: int, memory_path: Path) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        pid, text = holder["pid"], f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # the holder is just writing its name
        pid, text = "PID", "another process"
    return (
        f"a campaign is running on {memory_path} already: {text}; "
        f"wait for it, end it with `kill -TERM {pid}`, or give this one another memory"
    )


def _forget_locks() -> None:
    """A forked child must not keep a dead campaign's lock alive; closing its copy leaves the parent's lock alone."""
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_locks)
