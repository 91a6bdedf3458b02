"""Between records and the memory's rows: columns, JSON, and texts packed against the campaign's first source."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any

from arl_core.records import Campaign, Experiment, finite_json, verdict_from_json
from frozen_env.contract import Report

CAMPAIGN = tuple(field.name for field in dataclasses.fields(Campaign))
SELECT_CAMPAIGN = f"select {', '.join(CAMPAIGN)} from m.campaigns"
REPORT_LISTS = ("report_step", "report_elapsed_s", "report_fraction", "report_loss", "report_lr")
PLAIN = (  # columns that hold an attribute as it is
    "status", "cause", "reason", "summary", "diff", "source_hash", "metric", "value", "direction", "estimate",
    "incumbent_value", "reward", "peak_memory_mb", "tokens", "seed", "environment_digest", "sandbox", "created_at",
    "policy_step", "confirmed_value", "confirmations",
)  # fmt: skip
JSON = ("reward_terms", "costs", "repairs", "extra")
PACKED = ("source", "prompt", "log")
LIGHT = ("campaign", "idx", "parent_idx", *PLAIN, *JSON)
WHOLE = ("completion", "verdicts", *PACKED, *REPORT_LISTS)
DETAILS = "(from m.details union all from m.details_fresh)"
STATES = "(from m.states union all from m.states_elsewhere)"
MEASURED = "value is not null and not isnan(value)"


def insert(db: Any, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    db.execute(f"insert into m.{table} ({', '.join(row)}) values ({marks})", list(row.values()))


def to_row(no: int, experiment: Experiment) -> dict[str, Any]:
    row: dict[str, Any] = {"campaign": no, "idx": experiment.index, "parent_idx": experiment.parent_index}
    row |= {name: clean(getattr(experiment, name)) for name in PLAIN}
    row |= {name: dumps(getattr(experiment, name)) for name in JSON}
    row["reports"] = len(experiment.reports)
    row["source_key"] = key(experiment.source_hash)
    return row


def to_details(no: int, experiment: Experiment, base: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"campaign": no, "idx": experiment.index, "completion": clean(experiment.completion)}
    row["verdicts"] = dumps([dataclasses.asdict(verdict) for verdict in experiment.verdicts])
    row |= {name: _pack(getattr(experiment, name), base) for name in PACKED}
    for column in REPORT_LISTS:
        row[column] = [getattr(report, column.removeprefix("report_")) for report in experiment.reports]
    return row


def from_row(campaign_id: str, row: dict[str, Any], base: bytes) -> Experiment:
    fields: dict[str, Any] = {name: row[name] for name in PLAIN}
    fields |= {name: json.loads(row[name]) for name in JSON}
    for name in ("reward_terms", "costs"):
        fields[name] = {key: float(value) for key, value in fields[name].items()}
    fields["repairs"] = tuple(fields["repairs"])
    fields |= {name: _unpack(row[name], base) for name in PACKED if name in row}
    if "completion" in row:
        fields["completion"] = row["completion"]
    if "verdicts" in row:
        fields["verdicts"] = tuple(verdict_from_json(v) for v in json.loads(row["verdicts"]))
    if "report_step" in row:
        fields["reports"] = _reports([row[name] for name in REPORT_LISTS])
    return Experiment(campaign_id, row["idx"], parent_index=row["parent_idx"], **fields)


def _reports(lists: Sequence[list[Any]]) -> tuple[Report, ...]:
    return tuple(Report(*values) for values in zip(*lists, strict=True))


def to_campaign(row: tuple[Any, ...]) -> Campaign:
    fields = dict(zip(CAMPAIGN, row, strict=True))
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


def key(source_hash: str) -> int:
    """The hash's first 8 bytes as an integer; 0 when there is no hash. Text that is no hex digest has its own key."""
    try:
        return int(source_hash[:16] or "0", 16)
    except ValueError:
        return zlib.crc32(source_hash.encode("utf-8", "surrogatepass"))


def clean(value: Any) -> Any:
    """DuckDB takes UTF-8 only: a lone surrogate from a candidate's output becomes a question mark."""
    return str(value).encode("utf-8", "replace").decode() if isinstance(value, str) else value


def dumps(value: Any) -> str:
    return json.dumps(finite_json(value), allow_nan=False)
