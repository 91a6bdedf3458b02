"""The memory's DuckDB file: its schema, its making, and opening it for the length of one call.

DuckDB lets one process write and shuts every other out, readers included, while it does. So nobody holds the file:
each call attaches it to a DuckDB instance in memory, works, and detaches (0.5 ms; a plain duckdb.connect() costs 15).
A second process waits its turn and, past `wait_s`, is told who holds the file.

No file that we cannot read is ever deleted, replaced or written to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from arl_core.errors import MemoryFileError

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
ROW_GROUP = 8192  # rows; large ones make commits slow, small ones the queries
MIN_FREE_MB = 64  # a commit is refused below this; a night of experiments takes a few MB
ATTACHES = 200  # an engine serves so many: DuckDB 2.0.0 keeps up to 4 kB of each until its instance closes

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


class MemoryFile:
    """The file at `path`, opened call by call. Safe across threads and forks. See Memory for the arguments."""

    def __init__(self, path: str | Path, *, read_only: bool = False, wait_s: float = 30.0) -> None:
        self.path = Path(path).resolve()
        self.read_only = read_only
        self.wait_s = wait_s
        self._engine: Any = None
        self._engine_pid = 0
        self._attaches = 0
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
            self._engine, self._engine_pid, self._attaches = self._new_engine(), os.getpid(), 0
        elif self._attaches >= ATTACHES:
            self._engine.close()
            self._engine, self._attaches = self._new_engine(), 0
        how = "read_only" if read_only else f"row_group_size {ROW_GROUP}"
        command = f"attach {_quote(self.path)} as m ({how})"
        deadline = time.monotonic() + self.wait_s
        pause_s = 0.005
        while True:
            try:
                self._engine.execute(command)
                self._attaches += 1
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


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
