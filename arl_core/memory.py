"""The campaign's memory: every experiment, its curve, and the state to resume from, in one DuckDB file.

commit_iteration() is the commit of an iteration: one transaction, on disk when it returns. How the file is opened is
the business of memory_file.py, how records become rows that of memory_rows.py. That only one *campaign* runs on a memory
is campaign_lock.py's, a lock file of its own: DuckDB's lock comes and goes with every method.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arl_core.errors import ConfigError
from arl_core.memory_file import MemoryFile
from arl_core.memory_rows import (
    CAMPAIGN,
    DETAILS,
    LIGHT,
    MEASURED,
    REPORT_LISTS,
    SELECT_CAMPAIGN,
    STATES,
    WHOLE,
    dumps,
    from_row,
    insert,
    key,
    to_campaign,
    to_details,
    to_row,
)
from arl_core.records import Campaign, Experiment, State, device_of, one_line, utc_now
from frozen_env.contract import Report

RECENT = 32  # experiments that a prompt shows: the most recent…
TOP = 5  # …and the best
STATES_KEPT = 3  # the last states, so that a torn checkpoint can fall back to the one before
FRESH = 128  # experiments whose details wait to be moved
PAGE = 64  # experiments that each() holds at a time
REASON_CHARS = 300  # of why a campaign ended
STATUS_REASON = "status_reason"  # its name in the last state's values; a column would shut older versions out


class Memory(MemoryFile):
    """The memory file at `path`. Cheap to hold: the file itself is open only inside a method. Safe across threads.

    A writer's file is created when missing; `read_only` (reports) wants it to exist and never changes it. wait_s bounds
    how long a method waits for another process to let go of the file.

    Raises MemoryFileError when the file is corrupt, held by another process for too long, written by a newer version,
    not a memory at all, or when the disk is full; each message says what to do, and nothing is lost.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False, wait_s: float = 30.0) -> None:
        self._bases: dict[int, bytes] = {}
        super().__init__(path, read_only=read_only, wait_s=wait_s)

    # --- campaigns ----------------------------------------------------------------------------------------------------

    def create_campaign(self, campaign: Campaign) -> None:
        """Write a new campaign down. ValueError when its id is taken."""
        with self._open(write=True) as db:
            if db.execute("select 1 from m.campaigns where id = ?", [campaign.id]).fetchone():
                raise ValueError(f"campaign {campaign.id!r} is in {self.path} already")
            (no,) = db.execute("select coalesce(max(no), 0) + 1 from m.campaigns").fetchone()
            values = [getattr(campaign, name) for name in CAMPAIGN]
            values[CAMPAIGN.index("config")] = dumps(campaign.config)
            row = [no, *values, None]
            db.execute(f"insert into m.campaigns values ({', '.join('?' * len(row))})", row)

    def campaigns(self) -> list[Campaign]:
        """Return all campaigns, oldest first."""
        with self._open() as db:
            return [to_campaign(row) for row in db.execute(f"{SELECT_CAMPAIGN} order by no").fetchall()]

    def get_campaign(self, campaign_id: str = "latest") -> Campaign:
        """Return one campaign by its id, or the one started last. ConfigError when there is no such campaign."""
        with self._open() as db:
            no = self._number(db, campaign_id)
            return to_campaign(db.execute(f"{SELECT_CAMPAIGN} where no = ?", [no]).fetchone())

    def set_status(self, campaign_id: str, status: str, reason: str = "") -> None:
        """Note how the campaign stands: running, finished, interrupted, failed; and why, as one printable line.

        A status without a reason takes away the one before.
        """
        with self._open(write=True) as db:
            no = self._number(db, campaign_id)
            db.execute("update m.campaigns set status = ? where no = ?", [status, no])
            self._note_reason(db, no, one_line(reason, REASON_CHARS))

    def status_reason(self, campaign_id: str) -> str:
        """Return why the campaign's status is what it is; "" when nobody said. Untrusted: an error may quote a candidate."""
        with self._open() as db:
            last = self._last_values(db, self._number(db, campaign_id))
        return str(last[1].get(STATUS_REASON, "")) if last else ""

    def written_last(self) -> str | None:
        """Return the id of the campaign that wrote last or was created since; None in an empty memory.

        While somebody holds the campaign lock, this is the one that runs: every start writes a state first.
        """
        newest = "(select max(no) from m.campaigns)"
        query = f"""select id from m.campaigns where no =
                    case when {newest} in (select campaign from {STATES}) then (select max(campaign) from m.states)
                    else {newest} end"""
        with self._open() as db:
            row = db.execute(query).fetchone()
        return str(row[0]) if row else None

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
            insert(db, "experiments", to_row(no, experiment))
            insert(db, "details_fresh", to_details(no, experiment, base))
            if db.execute("select count(*) from m.details_fresh").fetchone()[0] >= FRESH:
                db.execute("insert into m.details from m.details_fresh order by campaign, idx")
                db.execute("delete from m.details_fresh")
            _settle_repeats(db, no, experiment.index)
            self._write_state(db, no, experiment.index, state)

    def commit_state(self, campaign_id: str, state: State) -> None:
        """Replace the state without adding an experiment (the noise floor was measured, the policy warmed up…)."""
        with self._open(write=True) as db:
            no = self._number(db, campaign_id)
            self._write_state(db, no, state.index, state)

    def state(self, campaign_id: str, *, back: int = 0) -> State | None:
        """Return the state to resume from, None before the first. back=1 is the one before it, down to STATES_KEPT."""
        with self._open() as db:
            query = f"select data_json, data, idx from {STATES} where campaign = ? order by seq desc limit 1 offset ?"
            row = db.execute(query, [self._number(db, campaign_id), back]).fetchone()
        if row is None:
            return None
        values = {name: value for name, value in json.loads(row[0]).items() if name != STATUS_REASON}
        return State(values, bytes(row[1]), row[2])

    # --- questions ----------------------------------------------------------------------------------------------------

    def recent(self, campaign_id: str, n: int = RECENT, *, whole: bool = False) -> list[Experiment]:
        """Return the n experiments last in line, newest first.

        What a prompt does not show is left empty unless `whole`: reports, verdicts, source, prompt, completion and log.
        """
        return self._select(campaign_id, "order by idx desc limit ?", n, details=WHOLE if whole else ())

    def top(self, campaign_id: str, n: int = TOP, *, whole: bool = False, only_kept: bool = False) -> list[Experiment]:
        """Return the n best *measured* experiments, best first in the metric's direction; forecasts do not count.

        The mean over fresh seeds goes before the value of a single run. `only_kept`: those that became the incumbent once.

        `whole` as in recent().
        """
        kept = "and status = 'kept' " if only_kept else ""
        best = f"and {MEASURED} {kept}{{best}} limit ?"
        return self._select(campaign_id, best, n, details=WHOLE if whole else ())

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
        kept = f"and status = 'kept' and {MEASURED}"
        with self._open():
            promoted = self._select(campaign_id, f"{kept} and confirmations > 0", details=())
            last = max(promoted, key=lambda one: one.promotion, default=None)
            if last is not None and last.promotion:
                return self.experiment(campaign_id, last.index)
            return next(iter(self._select(campaign_id, f"{kept} {{best}} limit 1")), None)

    def experiment(self, campaign_id: str, index: int) -> Experiment | None:
        """Return one experiment, None when it was never committed."""
        return next(iter(self._select(campaign_id, "and idx = ?", index)), None)

    def experiments(self, campaign_id: str, since: int = 0, *, whole: bool = True) -> list[Experiment]:
        """Return all experiments from index `since` on, in order; without `whole` as recent() does."""
        return self._select(campaign_id, "and idx >= ? order by idx", since, details=WHOLE if whole else ())

    def each(self, campaign_id: str) -> Iterator[Experiment]:
        """Give one experiment after the other, in order, without ever holding them all: a campaign has no end."""
        since = 0
        while page := self._select(campaign_id, "and idx >= ? order by idx limit ?", since, PAGE):
            yield from page
            since = page[-1].index + 1

    def next_index(self, campaign_id: str) -> int:
        """Return the index after the last one committed; 0 when there is none."""
        with self._open() as db:
            query = "select coalesce(max(idx) + 1, 0) from m.experiments where campaign = ?"
            return int(db.execute(query, [self._number(db, campaign_id)]).fetchone()[0])

    def missing_indices(self, campaign_id: str) -> list[int]:
        """Return the indices below next_index() that were never committed: candidates that ran side by side with later
        ones when their campaign was killed."""
        with self._open() as db:
            query = "select idx from m.experiments where campaign = ?"
            found = {row[0] for row in db.execute(query, [self._number(db, campaign_id)]).fetchall()}
        return [index for index in range(max(found, default=-1) + 1) if index not in found]

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
            row = db.execute(query.format("and e.campaign = ?" if one else ""), [key(source_hash), source_hash, *one])
            found = row.fetchone()
        return (found[0], int(found[1])) if found else None

    def programs(self, campaign_id: str, n: int = 500, best: int = 20) -> list[Experiment]:
        """Return the first experiment, the n latest and the best measured of those that made a program of their own, oldest
        first, with their sources: what a critic is fitted on. Other texts, reports and verdicts are left empty.

        The best, as top() ranks them, are there because the incumbent of a long campaign is seldom among the latest.
        """
        ran = f"""and (idx = 0 or source_hash != '') and status != 'duplicate'
                  qualify idx = 0 or row_number() over (order by idx desc) <= ?
                  or ({MEASURED} and row_number() over (partition by {MEASURED} {{best}}) <= ?) order by idx"""
        return self._select(campaign_id, ran, n, best, details=("source",))

    def curves(self, campaign_id: str) -> dict[int, tuple[Report, ...]]:
        """Return the training curve of every experiment that reported anything, by index."""
        found = self._select(campaign_id, "and reports > 0 order by idx", details=REPORT_LISTS)
        return {experiment.index: experiment.reports for experiment in found}

    def completed_runs(
        self, environment_digest: str, limit: int = 500, *, own: str = "", curves: bool = True
    ) -> list[Experiment]:
        """Return the latest runs that trained to the end and were measured in this very frozen environment, from all
        campaigns, oldest first: what the forecaster is calibrated on. Those of the campaign `own` come last, whenever they
        were: none of them gives way to another campaign's, and no campaign counts that ran on another device than it. Texts
        are left empty, without `curves` reports and verdicts too.
        """
        where = f"""where environment_digest = ? and status in ('kept', 'discarded') and {MEASURED}
                    and reports > 0 and campaign in (select unnest(?::integer[]))
                    order by campaign = ? desc, campaign desc, idx desc limit ?"""
        with self._open() as db:
            no = self._number(db, own) if own else -1
            alike = self._alike(db, no)
            return self._experiments(
                db, where, [environment_digest, alike, no, limit], (*REPORT_LISTS, "verdicts") if curves else ()
            )[::-1]

    def campaigns_alike(self, own: str, device: str = "") -> set[str]:
        """Return the campaigns whose experiment 0 ran on the device of `own`'s, or on `device` while that is not committed.

        A time budget buys more training on a faster device, so that curves, results and their noise differ between two. A
        campaign without a word of its device counts.
        """
        with self._open() as db:
            alike = self._alike(db, self._number(db, own), device)
            ids = dict(db.execute("select no, id from m.campaigns").fetchall())
        return {ids[no] for no in alike}

    def export(self, target: str | Path, campaign_id: str = "latest") -> int:
        """Write a campaign as JSON lines, the campaign first, then every experiment in full; return their number.

        Replaces `target` only when the whole is written.
        """
        campaign = self.get_campaign(campaign_id)
        target = Path(target)
        partial = target.with_name(target.name + ".partial")
        count = 0
        with partial.open("w", encoding="utf-8") as out:
            out.write(dumps(campaign.to_json()) + "\n")
            for experiment in self.each(campaign.id):
                out.write(dumps(experiment.to_json()) + "\n")
                count += 1
        partial.replace(target)
        return count

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
                order = f"order by coalesce(confirmed_value, value) {'asc' if direction == 'lower' else 'desc'}, idx"
                rest = rest.format(best=order)
            details = WHOLE if details is None else details
            return self._experiments(db, f"where campaign = ? {rest}", [no, *parameters], details)

    def _experiments(
        self, db: Any, where: str, parameters: Sequence[Any], details: tuple[str, ...]
    ) -> list[Experiment]:
        rows = db.execute(f"select {', '.join(LIGHT)} from m.experiments {where}", parameters).fetchall()
        ids = dict(db.execute("select no, id from m.campaigns").fetchall())
        found = {row[:2]: dict(zip(LIGHT, row, strict=True)) for row in rows}
        if details and found:
            query = f"""select campaign, idx, {", ".join(details)} from {DETAILS}
                        join (select unnest(?::integer[]) as campaign, unnest(?::integer[]) as idx) using (campaign, idx)"""
            for row in db.execute(query, [list(column) for column in zip(*found, strict=True)]).fetchall():
                found[row[:2]] |= zip(details, row[2:], strict=True)
        bases = {no: self._base(db, no) for no in {no for no, _ in found}} if details else {}
        return [from_row(ids[no], row, bases.get(no, b"")) for (no, _), row in found.items()]

    def _alike(self, db: Any, own: int, device: str = "") -> list[int]:
        query = "select c.no, e.extra from m.campaigns c left join m.experiments e on e.campaign = c.no and e.idx = 0"
        devices = {no: device_of(json.loads(extra or "{}")) for no, extra in db.execute(query).fetchall()}
        here = devices.get(own) or device
        return [no for no, there in devices.items() if not here or there in ("", here)]

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

    def _last_values(self, db: Any, no: int) -> tuple[int, dict[str, Any]] | None:
        query = f"select seq, data_json from {STATES} where campaign = ? order by seq desc limit 1"
        row = db.execute(query, [no]).fetchone()
        return (int(row[0]), json.loads(row[1])) if row else None

    def _note_reason(self, db: Any, no: int, reason: str) -> None:
        """Keep it with the last state, in place: a state of its own would push out one that a torn checkpoint may need."""
        told = {STATUS_REASON: reason} if reason else {}
        last = self._last_values(db, no)
        if last is None:
            if told:
                self._write_state(db, no, -1, State(told))
            return
        seq, values = last
        if values.pop(STATUS_REASON, "") == reason:
            return
        for table in ("states", "states_elsewhere"):
            command = f"update m.{table} set data_json = ? where campaign = ? and seq = ?"
            db.execute(command, [dumps(values | told), no, seq])

    def _write_state(self, db: Any, no: int, index: int, state: State) -> None:
        if db.execute("select 1 from m.states where campaign <> ? limit 1", [no]).fetchone():
            db.execute("insert into m.states_elsewhere from m.states where campaign <> ?", [no])
            db.execute("delete from m.states where campaign <> ?", [no])
        (seq,) = db.execute(f"select coalesce(max(seq) + 1, 0) from {STATES} where campaign = ?", [no]).fetchone()
        row = [no, seq, index, utc_now(), dumps(state.values), state.blob]
        db.execute("insert into m.states values (?, ?, ?, ?, ?, ?)", row)
        for table in ("states", "states_elsewhere"):
            db.execute(f"delete from m.{table} where campaign = ? and seq <= ?", [no, seq - STATES_KEPT])


def _settle_repeats(db: Any, no: int, index: int) -> None:
    """What the runs beside an experiment were kept whole for has come: its incumbent's mean counts, its first run is recorded."""
    waiting = "campaign = ? and idx = ? and result is not null"
    query = f"select result from m.repeats where {waiting} and role = 'incumbent' order by rowid"
    for (text,) in db.execute(query, [no, index]).fetchall():
        told = json.loads(text)
        command = """update m.experiments set confirmed_value = ?, confirmations = ?
                     where campaign = ? and idx = ? and status = 'kept' and coalesce(confirmations, 0) < ?"""
        # Side by side a candidate that is settled late has seen fewer of its incumbent's runs; and that may be none any more.
        db.execute(command, [told["mean"], told["runs"], no, told["index"], told["runs"]])
    db.execute(f"update m.repeats set result = null where {waiting}", [no, index])
