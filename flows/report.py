"""Write a campaign's report: one self-contained HTML page and its figures as PNG. Reads only, running campaigns too.

python -m flows.report                                   # the latest campaign
python -m flows.report CAMPAIGN --out FOLDER
python -m flows.report CAMPAIGN --export-best FOLDER     # the best train.py, its diff, a review sheet; applies nothing
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from arl_core.memory import Memory
from arl_core.report import export_best, read, write_report
from flows.surroundings import ROOT
from frozen_env.contract import ResearchError

DEFAULT_MEMORY = ROOT / "mlruns" / "memory.duckdb"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("campaign", nargs="?", default="latest", help="its id (default: the latest)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: reports/CAMPAIGN beside the memory")
    parser.add_argument(
        "--memory", type=Path, default=DEFAULT_MEMORY, metavar="FILE", help="default: mlruns/memory.duckdb"
    )
    parser.add_argument("--export-best", type=Path, metavar="DIR", help="also write the best program for review")
    options = parser.parse_args(arguments)
    try:
        with contextlib.closing(Memory(options.memory, read_only=True)) as memory:
            data = read(memory, options.campaign)
        out = options.out or options.memory.resolve().parent / "reports" / data.campaign.id
        print(f"report:  {write_report(data, out)}")
        if options.export_best is not None:
            print(f"best:    {export_best(data, options.export_best)} (applied nothing)")
    except (ResearchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
