"""How good are the policy's edits before any reward? Samples edits of the embedded target and tries each one.

python -m bench.edits --samples 200 --json
  -> {"well_formed":, "applied":, "compiled":, "ran":, "structural":, "distinct":, "seconds_per_edit":}

Shares of all samples: well_formed (blocks parse), applied (every SEARCH found, the edit changes the file and keeps the
rules), compiled, ran (reported a training step in the sandbox), structural (the syntax tree changes beyond literals),
distinct (different resulting programs). seconds_per_edit is the median. Prompts are those of a young campaign: the real
builder, the real agenda, a history that grows with the samples.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other when cores are shared

from arl_core.config import load_config
from arl_core.edit import apply_completion, parse_blocks, summarise
from arl_core.errors import EditRejected
from arl_core.prompt import PastExperiment, PromptInput, build_prompt
from arl_core.records import source_hash
from flows.surroundings import ROOT
from flows.warm_start import first_steps, first_steps_host, start_state, trained
from frozen_env.contract import ResearchError, Status
from frozen_env.fetch import data_dir


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.edits", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapter", default="auto", help="policy.adapter: auto, none or a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, help="policy.temperature (default: the preset's)")
    parser.add_argument("--no-run", action="store_true", help="do not run the edits (ran is then null)")
    parser.add_argument("--out", type=Path, help="write every completion and its fate there, as JSON lines")
    parser.add_argument("--json", action="store_true", help="print only the result as one JSON object, last")
    options = parser.parse_args(arguments)
    try:
        result = measure(options)
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the shares; every sample has a seed of its own, counted from options.seed."""
    from arl_core.policy.policy import Policy

    spec, source = start_state("embedded")
    changes = {"policy.adapter": options.adapter, "policy.threads": options.threads}
    if options.temperature is not None:
        changes["policy.temperature"] = options.temperature
    policy = Policy.load(load_config("embedded", changes).policy, data_dir())
    agenda = (ROOT / "target" / "AGENDA.md").read_text(encoding="utf-8")
    told: list[PastExperiment] = []
    fates: list[dict[str, Any]] = []
    for index in range(options.samples):
        began_s = time.monotonic()
        prompt = prompt_of(source, agenda, told, policy, index)
        rollout = policy.propose(prompt, source, options.seed + index)
        fate = fate_of(source, rollout.completion)
        fate |= {"seconds": time.monotonic() - began_s, "tokens": len(rollout.completion_ids)}
        fates.append(fate)
        if fate["program"]:
            told.append(PastExperiment(index + 1, Status.DISCARDED, fate["summary"], 2.0 + 0.001 * (index % 40)))
        if not options.json:
            print(f"#{index} {fate['code'] or 'ok'} {fate['seconds']:.1f} s: {fate['summary']}", flush=True)
    if not options.no_run:
        run_all(spec, fates, quiet=options.json)
    if options.out:
        options.out.write_text("".join(json.dumps(fate) + "\n" for fate in fates), encoding="utf-8")
    given = {"seed": options.seed, "threads": options.threads, "temperature": policy.settings.temperature}
    return shares(fates, ran=not options.no_run) | given


def prompt_of(source: str, agenda: str, told: list[PastExperiment], policy: Any, index: int) -> str:
    best = PastExperiment(0, Status.KEPT, "the target as it is", 2.0)
    given = PromptInput(agenda, source, "val_bpb", "lower", best, told[::-1][:32], told[:5], (), index + 1)
    return build_prompt(given, policy.count_tokens, policy.settings.prompt_tokens).text


def fate_of(source: str, completion: str) -> dict[str, Any]:
    """Say how far one completion comes without being run; `program` is the edited source, "" when there is none."""
    fate = {"completion": completion, "well_formed": False, "applied": False, "compiled": False, "structural": False}
    fate |= {"program": "", "summary": "", "code": ""}
    try:
        parse_blocks(completion)
        fate["well_formed"] = True
        edit = apply_completion(source, completion)
    except EditRejected as error:
        fate |= {"code": error.code, "summary": str(error), "applied": error.code == "syntax"}
        return fate
    return fate | {
        "applied": True,
        "compiled": True,
        "program": edit.source,
        "summary": summarise(source, edit.source),
        "structural": is_structural(source, edit.source),
    }


def is_structural(old: str, new: str) -> bool:
    """Say whether two sources differ in more than the values of literals."""
    return _shape(old) != _shape(new)


def _shape(source: str) -> str:
    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            return ast.copy_location(ast.Constant(value=0), node)

    return ast.dump(Blank().visit(ast.parse(source)))


def run_all(spec: Any, fates: list[dict[str, Any]], quiet: bool) -> None:
    """Run each different program until its first training step."""
    results: dict[str, bool] = {}
    with first_steps_host(spec) as host, tempfile.TemporaryDirectory() as scratch:
        for fate in fates:
            program = fate["program"]
            if not program:
                continue
            key = source_hash(program)
            if key not in results:
                result = first_steps(host, program, Path(scratch) / str(len(results)))
                results[key] = trained(result)
                if not results[key] and not quiet:
                    print(f"did not run ({result.cause.value}: {result.reason[:100]}): {fate['summary']}", flush=True)
            fate["ran"] = results[key]


def shares(fates: list[dict[str, Any]], ran: bool) -> dict[str, Any]:
    def share(name: str) -> float:
        return sum(bool(fate.get(name)) for fate in fates) / max(1, len(fates))

    programs = {source_hash(fate["program"]) for fate in fates if fate["program"]}
    return {
        "well_formed": share("well_formed"),
        "applied": share("applied"),
        "compiled": share("compiled"),
        "ran": share("ran") if ran else None,
        "structural": share("structural"),
        "distinct": len(programs) / max(1, len(fates)),
        "seconds_per_edit": statistics.median(fate["seconds"] for fate in fates) if fates else None,
        "samples": len(fates),
    }


if __name__ == "__main__":
    sys.exit(main())
