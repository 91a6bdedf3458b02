"""Time the prompt query and the commit on a memory with very many experiments.

    python -m bench.memory --rows 1000000 --json
    -> {"prompt_query_ms": {"median":, "p95":}, "insert_ms": {"median":}}   (and what else was measured)

Half the rows are one long campaign, half are campaigns of a thousand: years of nights in one file. Rows are made in SQL
but look like the real thing: a 500-byte diff, a packed prompt and source of the usual size, a curve of 50 reports. Both
figures go through the methods that a campaign uses, opening and closing the file included; the prompt query (32 most
recent and 5 best) is asked of the long campaign, the slower one; insert is the commit of an iteration with its 64 KB
of waiting rollouts, fsync included, into a group of rows that is half full.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from arl_core.memory import Memory
from arl_core.memory_file import ROW_GROUP
from arl_core.records import Campaign, Experiment, State, source_hash, utc_now
from frozen_env.contract import Report, Status

SHORT_CAMPAIGN = 1000  # experiments
BATCH = 100_000  # rows per transaction while filling
TAIL = ROW_GROUP // 2  # rows at the end that come in few at a time, as in life: a commit rewrites the group they share
TAIL_BATCH = 500
REPORTS = 50
PROMPT_BYTES = 1216  # a 4 KB prompt after packing
SOURCE_BYTES = 192  # a 15 KB source after packing against the seed's


def _packed_noise(count: int) -> str:
    """SQL for `count` bytes of noise that unpack to text: a zlib stream with one stored block of hexadecimal digits."""
    digests = " || ".join(f"sha256(i::varchar || '-{k}')" for k in range(count // 64))
    header = b"\x78\x01\x01" + count.to_bytes(2, "little") + (0xFFFF - count).to_bytes(2, "little")
    return f"unhex('{header.hex()}') || ({digests})::blob"


def _fill_sql(first_row: int, last_row: int, rows: int) -> list[str]:
    """An INSERT per table for rows [first_row, last_row): campaign 1 is the long one and comes first."""
    long = rows // 2
    curve = {
        "report_step": "p * 10",
        "report_elapsed_s": f"p * {300 / REPORTS} + (hash(i + p) % 1000) / 5000",
        "report_fraction": f"p / {REPORTS} + (hash(i + p) % 1000) / 1500000",
        "report_loss": "2.9 + 6 / (p + 1) + (hash(i * 31 + p) % 100000) / 2e6",
        "report_lr": f"0.002 * (1 - p / {REPORTS})",
    }
    key = {
        "campaign": f"case when i < {long} then 1 else 2 + (i - {long}) // {SHORT_CAMPAIGN} end",
        "idx": f"case when i < {long} then i else (i - {long}) % {SHORT_CAMPAIGN} end",
    }
    light = {
        "status": "case hash(i) % 10 when 0 then 'kept' when 1 then 'crashed' when 2 then 'stopped_early' "
        "else 'discarded' end",
        "parent_idx": "greatest(idx - 3, 0)",
        "cause": "''",
        "reason": "'val_bpb ' || (1 + (hash(i) % 100000) / 1e6) || ' against 1.0421 of the incumbent'",
        "summary": "'MATRIX_LR: ' || (hash(i) % 9973) / 1e6 || ' → ' || (hash(i + 1) % 9973) / 1e6",
        "diff": "'--- a/target/train.py\n+++ b/target/train.py\n@@ -' || i % 300 || ',7 +' || i % 300 || ',7 @@\n' "
        "|| repeat('     x = norm(x + self.attn(x))\n', 6) || '-' || sha256(i::varchar) || '\n+' "
        "|| sha256((-i)::varchar)",
        "source_hash": "sha256('s' || i)",
        "source_key": "('0x' || sha256('s' || i)[:16])::ubigint",
        "metric": "'val_bpb'",
        "value": "case when hash(i) % 10 in (1, 2) then null else 1 + (hash(i * 7) % 1000000) / 1e7 end",
        "direction": "'lower'",
        "estimate": "case when hash(i) % 10 = 2 then 1.05 + (hash(i) % 1000) / 1e5 end",
        "incumbent_value": "1.0421",
        "reward": "(hash(i * 13) % 1000000) / 1e6",
        "reward_terms": """'{"improvement": ' || (hash(i) % 1000) / 1e3 || ', "cost": 0.01}'""",
        "repairs": "'[]'",
        "costs": """'{"training": ' || 300 + (hash(i) % 1000) / 1e3 || ', "scoring": 4.2, "propose": 7.7}'""",
        "extra": "'{}'",
        "peak_memory_mb": "8000 + hash(i) % 1000",
        "tokens": "8000000 + hash(i) % 100000",
        "seed": "i",
        "environment_digest": "'d' || i // 200000",
        "sandbox": "'sandlock'",
        "created_at": "'2026-11-01T00:00:00.000+00:00'",
        "policy_step": "i // 4",
        "confirmations": "0",
        "reports": str(REPORTS),
    }
    details = {
        "completion": "'<<<<<<< SEARCH\n' || sha256(i::varchar) || '\n=======\n' || sha256((-i)::varchar) "
        "|| '\n>>>>>>> REPLACE'",
        "verdicts": "'[]'",
        **{name: f"list_transform(range(1, {REPORTS + 1}), lambda p: {each})" for name, each in curve.items()},
        "source": _packed_noise(SOURCE_BYTES),
        "prompt": _packed_noise(PROMPT_BYTES),
        "log": "''::blob",
    }
    statements = []
    for table, columns in (("experiments", light), ("details", details)):
        values = ", ".join(f"{expression} as {name}" for name, expression in (key | columns).items())
        statements.append(f"insert into m.{table} by name select {values} from range({first_row}, {last_row}) rows(i)")
    return statements


def fill(memory: Memory, rows: int) -> None:
    """Write `rows` experiments of one long campaign and many short ones, by SQL behind the memory's back."""
    shorts = -(-(rows - rows // 2) // SHORT_CAMPAIGN)
    for name in ("long", *(f"short-{k}" for k in range(shorts))):
        memory.create_campaign(Campaign(name, "overnight", {}, "d0", 0, utc_now(), "text"))
    bulk = max(0, rows - TAIL)
    starts = [*range(0, bulk, BATCH), *range(bulk, rows, TAIL_BATCH), rows]
    for first_row, last_row in itertools.pairwise(starts):
        with memory._open(write=True) as db:
            for statement in _fill_sql(first_row, last_row, rows):
                db.execute(statement)


def times_ms(action: Callable[[], Any], repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append((time.perf_counter() - started) * 1e3)
    return sorted(taken)


def summary(taken_ms: list[float]) -> dict[str, float]:
    at = {"median": 0.5, "p95": 0.95}
    return {name: round(taken_ms[min(len(taken_ms) - 1, int(q * len(taken_ms)))], 2) for name, q in at.items()}


def measure(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    memory = Memory(folder / "memory.duckdb")
    started = time.perf_counter()
    fill(memory, rows)
    fill_s = time.perf_counter() - started

    source = Path("frozen_env/contract.py").read_text()
    reports = tuple(Report(10 * p, 6.0 * p, p / REPORTS, 3 + 6 / (p + 1), 1e-3) for p in range(1, REPORTS + 1))
    model = Experiment("long", 0, Status.DISCARDED, value=1.1, source=source, prompt=source[:4000], diff="d" * 500)
    model = replace(model, source_hash=source_hash(source), reports=reports, environment_digest="d0")
    state = State({"policy_checkpoint": "policy/000123", "policy_step": 123}, os.urandom(65_536))
    index = memory.next_index("long")

    def commit() -> None:
        nonlocal index
        memory.commit_iteration(replace(model, index=index), state)
        index += 1

    insert_ms = times_ms(commit, repeats)
    memory = Memory(memory.path)  # a fresh one, with nothing cached
    prompt_ms = {name: times_ms(functools.partial(memory.for_prompt, name), repeats) for name in ("long", "short-0")}
    recent, top = memory.for_prompt("long")
    assert (len(recent), len(top)) == (min(32, index), min(5, index)), "the query did not find what it must"
    return {
        "prompt_query_ms": summary(prompt_ms["long"]),
        "insert_ms": summary(insert_ms),
        "prompt_query_short_campaign_ms": summary(prompt_ms["short-0"]),
        "seen_ms": summary(times_ms(lambda: memory.seen("0" * 64), repeats)),
        "incumbent_ms": summary(times_ms(lambda: memory.incumbent("long"), repeats)),
        "completed_runs_ms": summary(times_ms(lambda: memory.completed_runs("d0"), min(repeats, 10))),
        "rows": rows,
        "file_mb": round(memory.path.stat().st_size / 1e6),
        "fill_s": round(fill_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="keep the memory file here instead of a temporary folder")
    parser.add_argument("--json", action="store_true", help="only the object, on one line")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-memory-")))
        result = measure(folder, options.rows, options.repeats)
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
