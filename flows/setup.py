"""Fetch and prepare what a preset needs: its problem's data and its policy's weights. Does nothing when they are there.

python -m flows.setup --preset embedded
python -m flows.setup --problem FOLDER
"""

from __future__ import annotations

import argparse
import sys

from arl_core.config import load_config, parse_overrides, preset_names
from arl_core.policy.weights import fetch
from frozen_env import manifest
from frozen_env.contract import ResearchError
from frozen_env.fetch import data_dir
from frozen_env.problems import prepare


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.setup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="embedded", help=f"one of: {', '.join(preset_names())} (default: embedded)")
    parser.add_argument("--problem", metavar="FOLDER", help="a problem of your own (docs/problems.md)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    options = parser.parse_args(arguments)
    try:
        named = {} if options.problem is None else {"environment.problem": options.problem}
        config = load_config(options.preset, named | parse_overrides(options.set))
        manifest.verify()
        prepare(config.environment, data_dir(), _say)
        if config.policy.proposer == "policy":
            fetch(config.policy, data_dir(), _say)
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
