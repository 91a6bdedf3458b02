"""Command line of the frozen environment.

python -m frozen_env prepare --preset embedded                                   # fetch and prepare the text
python -m frozen_env run --source target/train.py --preset embedded --out DIR    # one experiment, no Prefect, no policy
python -m frozen_env check FOLDER                                                # does this problem keep the contract?
python -m frozen_env run --problem FOLDER --out DIR                              # one experiment on a problem of one's own
python -m frozen_env verify                                                      # are the frozen files the pinned ones?
python -m frozen_env manifest --write [--problem FOLDER]                         # pin them, after a deliberate change
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from frozen_env import manifest
from frozen_env.check import check
from frozen_env.contract import FrozenEnvError, RunResult
from frozen_env.description import Description, read
from frozen_env.fetch import data_dir
from frozen_env.files import join
from frozen_env.problems import prepare
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Event, Host
from frozen_env.spec import EnvironmentSpec, preset_names, read_preset


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except (FrozenEnvError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m frozen_env", description="The frozen environment, by itself.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(do=do)
        return one

    def with_preset(one: argparse.ArgumentParser) -> None:
        one.add_argument("--preset", choices=preset_names(), help="of the built-in problem (default: embedded)")
        one.add_argument(
            "--problem", type=Path, metavar="FOLDER", help="a problem's folder (default: the built-in one)"
        )
        one.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override an environment constant, e.g. budget_s=5",
        )
        one.add_argument("--data", type=Path, default=data_dir(), help="data folder (default: $ARL_DATA or ./data)")

    prepare_command = command(
        "prepare", _prepare, "Fetch and prepare the text of a preset; does nothing when it is there."
    )
    with_preset(prepare_command)
    run = command("run", _run, "Train and score one candidate under the frozen environment.")
    with_preset(run)
    run.add_argument(
        "--source", type=Path, help="the candidate: a file, or a folder (default: the problem's own files)"
    )
    run.add_argument("--out", type=Path, required=True, help="folder for result.json, the log and the weights")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--json", action="store_true", help="print the result as the last line")
    checking = command(
        "check", _check, "Say in sentences what a problem's folder lacks; exit code 1 when there is anything."
    )
    checking.add_argument("folder", type=Path, metavar="FOLDER")
    checking.add_argument("--no-trial", action="store_true", help="do not train and score the files as they are")
    checking.add_argument("--data", type=Path, default=data_dir(), help="data folder (default: $ARL_DATA or ./data)")
    verifying = command("verify", _verify, "Check every frozen file against MANIFEST.sha256.")
    verifying.add_argument(
        "--problem", type=Path, metavar="FOLDER", help="a problem's folder (default: the built-in one)"
    )
    manifest_command = command("manifest", _manifest, "Show the checksums of the frozen files; with --write, pin them.")
    manifest_command.add_argument("--write", action="store_true")
    manifest_command.add_argument("--problem", type=Path, metavar="FOLDER", help="those of a problem's folder")
    return parser


def _spec(options: argparse.Namespace) -> EnvironmentSpec:
    if options.problem is not None and not (problem := read(options.problem)).preset_only:
        values: dict[str, Any] = problem.spec().to_json()
    else:
        values = read_preset(options.preset or "embedded")["environment"]
        values |= {} if options.problem is None else {"problem": str(options.problem)}
    for item in options.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise FrozenEnvError(f"--set takes KEY=VALUE, got {item!r}")
        try:
            values[key.removeprefix("environment.")] = json.loads(text)
        except ValueError:
            values[key.removeprefix("environment.")] = text
    return EnvironmentSpec.from_json(values)


def _prepare(options: argparse.Namespace) -> int:
    manifest.verify()
    prepare(_spec(options), options.data, lambda line: print(line, flush=True))
    return 0


def _check(options: argparse.Namespace) -> int:
    return check(options.folder, options.data, lambda line: print(line, flush=True), trial=not options.no_trial)


def _verify(options: argparse.Namespace) -> int:
    folder = EnvironmentSpec.problem if options.problem is None else options.problem
    pinned = manifest.verify()[:16], manifest.verify_problem(read(folder))[:16]
    print(f"frozen files are as pinned, manifest {pinned[0]}, of the problem {pinned[1]}")
    return 0


def _manifest(options: argparse.Namespace) -> int:
    if options.problem is None:
        if options.write:
            manifest.write()
        print(manifest.render(), end="")
        return 0
    problem = read(options.problem)
    if options.write:
        manifest.pin_problem(problem)
    print(manifest.render(problem.folder, problem.frozen_files()), end="")
    return 0


def _source(options: argparse.Namespace, problem: Description) -> str:
    """The candidate as one text: a file, the editable files of a folder, or the problem's own.

    The problem's own files get the constants of [target], as experiment 0 does; any other candidate has its own.
    """
    if options.source is not None and not options.source.exists():
        raise FrozenEnvError(f"no candidate at {options.source}; name one with --source")
    if options.source is None or options.source.resolve() in _own_places(problem):
        preset = options.preset or "embedded"
        print(
            f"constants of {'preset ' + preset if problem.preset_only else 'problem.toml'} written in, as in experiment 0"
        )
        return problem.first_source(preset)
    if options.source.is_dir():
        return join({name: (options.source / name).read_text(encoding="utf-8") for name in problem.files})
    return str(options.source.read_text(encoding="utf-8"))


def _own_places(problem: Description) -> tuple[Path, ...]:
    """The problem's folder, and its script where that is all there is to edit."""
    folder = problem.folder.resolve()
    return (folder, folder / problem.files[0]) if len(problem.files) == 1 else (folder,)


def _run(options: argparse.Namespace) -> int:
    spec = _spec(options)
    problem = read(spec.problem)
    source = _source(options, problem)
    if problem.way == "command":  # its data take seconds
        prepare(spec, options.data, lambda line: print(line, flush=True))
    options.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with held_for(spec.device) as gpu, Host(spec, options.data, options.out / "host.log", gpu) as host:
        host.wait_ready()
        print(f"host ready after {time.monotonic() - began_s:.1f} s, sandbox {host.sandbox}", flush=True)
        if host.sandbox == "OFF":
            print("WARNING: THE SANDBOX IS OFF: this candidate can do whatever you can", file=sys.stderr, flush=True)
        result = host.run(source, seed=options.seed, place=options.out.resolve(), on_event=_Printer(spec))
    (options.out / "result.json").write_text(json.dumps(result.to_json(), indent=1), encoding="utf-8")
    shutil.rmtree(options.out / "candidate", ignore_errors=True)
    _show(result, options.out)
    if options.json:
        print(json.dumps(result.to_json()))
    return 0 if result.score else 1


class _Printer:
    """One line per check interval while a candidate trains."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        self.spec = spec
        self.next_s = 0.0

    def __call__(self, event: Event) -> None:
        if event["event"] == "started":
            print(f"training for {self.spec.budget_s:g} s, started after {event['startup_s']:.1f} s", flush=True)
        elif event["event"] == "report":
            step, elapsed_s, fraction, loss, _ = event["report"]
            if elapsed_s >= self.next_s:
                self.next_s = elapsed_s + self.spec.check_every_s
                print(f"  {fraction:4.0%}  step {step:5d}  loss {loss:.4f}", flush=True)
        elif event["event"] == "scoring":
            print("scoring", flush=True)


def _show(result: RunResult, out: Path) -> None:
    if result.score is not None:
        score = result.score
        text = f"{score.held_out_bytes} bytes; {result.tokens_served} tokens in " if result.tokens_served else ""
        print(
            f"{score.metric} {score.value:.4f}  ({text}{result.training_s:.1f} s of training; "
            f"scoring {score.seconds:.2f} s + {score.startup_s:.2f} s start-up; peak {result.peak_memory_mb:.0f} MiB)"
        )
        print(_speed(result.extra["performance"]))
    else:
        print(f"{result.ending} ({result.cause}): {result.reason}; log: {out / 'log.txt'}")


def _speed(known: dict[str, Any]) -> str:
    """Return one line about tokens, steps and the device; what is not known is left out."""
    shown = [
        ("tokens_per_s", "{:,.0f} tokens/s"),
        ("step_s", "{:.3g} s a step"),
        ("step_share", "{:.1%} of the budget in steps"),
        ("wait_share", "{:.2%} waiting for text"),
        ("mfu", "{:.1%} MFU"),
        ("peak_vram_mb", "{:,.0f} MiB of the GPU"),
    ]
    words = [form.format(known[name]) for name, form in shown if known[name] is not None]
    return f"{known['device'] or 'unknown device'}: {', '.join(words)}"


if __name__ == "__main__":
    sys.exit(main())
