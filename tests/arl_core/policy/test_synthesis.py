"""What the warm start teaches: sane edits of the real target that the decoder can say."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from arl_core.edit import apply_completion, read_constants
from arl_core.errors import ConfigError
from arl_core.policy.decoder import Vocabulary
from arl_core.policy.levers import built_in_levers, read_levers
from arl_core.policy.policy import Policy
from arl_core.policy.settings import PolicySettings
from arl_core.policy.synthesis import Told, apply, completion, draw_edit, move, synthesise
from arl_core.policy.teaching import IGNORED, Lesson, collate, encode_edit, lesson_loss
from tests.arl_core.policy.conftest import tiny

TARGET = (Path(__file__).resolve().parents[3] / "target" / "train.py").read_text(encoding="utf-8")
LEVERS, OPTIONS = built_in_levers().every, built_in_levers().options
AGENDA = "Lower val_bpb. Try schedules, norms and initialisation."


def count_words(text: str) -> int:
    return len(re.findall(r"\w+|\W", text))


def test_every_lever_finds_its_lines_in_the_present_target() -> None:
    """A lever that went stale teaches nothing; this test says which one to bring up to date."""
    for lever in LEVERS:
        for search, _ in lever.blocks:
            assert ("\n" + TARGET).count(f"\n{search}\n") == 1, search


def test_every_name_in_a_template_has_options() -> None:
    texts = [replace for lever in LEVERS for _, replace in lever.blocks] + [
        one for many in OPTIONS.values() for one in many
    ]
    assert {name for text in texts for name in re.findall(r"\{([a-z]+)\}", text)} <= set(OPTIONS)


def test_drawn_edits_apply_through_the_policys_own_door() -> None:
    rng = random.Random(0)
    applied = 0
    for _ in range(60):
        blocks = draw_edit(TARGET, rng)
        edited = blocks and apply(TARGET, blocks)
        if blocks and edited:
            applied += 1
            assert apply_completion(TARGET, completion(blocks) + "\n").source == edited
            assert "{" not in blocks[-1][1].replace('{"', "")
    assert applied > 40


def test_draws_are_broad_and_repeatable() -> None:
    def draw(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [draw_edit(TARGET, rng) for _ in range(200)]

    drawn = [one for one in draw(1) if one]
    assert drawn == [one for one in draw(1) if one]
    assert len(set(drawn)) > 0.7 * len(drawn)
    structural = sum(not blocks[-1][0].isupper() and not blocks[-1][0].split(" ")[0].isupper() for blocks in drawn)  # type: ignore[index]
    assert structural > 0.3 * len(drawn)


def test_constants_move_on_their_natural_scale() -> None:
    constants = read_constants(TARGET)
    rng = random.Random(0)
    for name, value in constants.items():
        for _ in range(30):
            moved = move(name, value, constants, rng)
            if moved is None:
                continue
            number = ast.literal_eval(moved)
            if name in ("WARMUP", "WARMDOWN", "FINAL_LR"):
                assert 0 <= number <= 1
            elif isinstance(value, int | float) and value:
                assert 0.1 <= number / value <= 25, (name, value, moved)
            if name == "HEAD_DIM":
                assert constants["WIDTH"] % number == 0


def test_patterns_keep_their_letters_and_sizes_double_or_halve() -> None:
    rng = random.Random(0)
    for _ in range(30):
        moved = ast.literal_eval(move("WINDOW_PATTERN", "SSSL", {}, rng) or '"SLLS"')
        assert sorted(set(moved)) in (["L", "S"], ["L"], ["S"])
        assert moved != "SSSL"
        assert move("TOTAL_BATCH_SIZE", 1024, {}, rng) in ("512", "2048")
    assert move("NAME", "fixed", {"NAME": "fixed"}, random.Random(1)) != '"fixed"'


def test_an_edit_may_have_as_many_blocks_as_asked_for_and_each_names_a_line_of_its_own() -> None:
    rng = random.Random(0)
    drawn = [blocks for _ in range(200) if (blocks := draw_edit("A = 1.0\nB = 2.0\nC = 3.0\nD = 4.0\n", rng, 3))]
    assert {len(blocks) for blocks in drawn} == {1, 2, 3}
    assert all(len({search for search, _ in blocks}) == len(blocks) for blocks in drawn)


def test_examples_have_real_prompts_and_different_edits() -> None:
    examples = synthesise(TARGET, 3, 4, Told(AGENDA), count_words, 2500, seed=0)
    assert examples == synthesise(TARGET, 3, 4, Told(AGENDA), count_words, 2500, seed=0)
    for example in examples:
        assert "## Task" in example.prompt
        assert "<<<<" not in example.prompt  # nothing to copy blindly
        results = [apply(example.source, blocks) for blocks in example.edits]
        assert None not in results
        assert max(Counter(results).values()) == 1


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(tiny(prompt_tokens=1400, max_new_tokens=640, max_search_lines=3), Path("unused"))


@pytest.mark.real_policy
def test_the_decoder_can_say_what_is_taught() -> None:
    """Each lever once, two-block levers too, as the embedded model's tokenizer spells it."""
    from transformers import AutoTokenizer

    from arl_core.policy.weights import prepare_embedded
    from frozen_env.fetch import data_dir

    tokenizer = AutoTokenizer.from_pretrained(prepare_embedded(data_dir()), local_files_only=True)
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    values = {name: choices[0] for name, choices in OPTIONS.items()}
    unsaid = []
    for lever in LEVERS:
        filled = lever.blocks
        for _ in range(3):
            filled = tuple((s, re.sub(r"\{([a-z]+)\}", lambda m: values[m.group(1)], r)) for s, r in filled)
        assert apply(TARGET, filled) is not None, lever
        if encode_edit(TARGET, filled, tokenizer, vocabulary, PolicySettings(max_new_tokens=320)) is None:
            unsaid.append(filled[-1][1])
    assert unsaid == []


def test_forced_tokens_carry_no_label_and_the_loss_is_finite(policy: Policy) -> None:
    blocks = (("DEPTH = 12  # transformer blocks", "DEPTH = 14  # transformer blocks"),)
    taught = encode_edit(TARGET, blocks, policy.tokenizer, policy.vocabulary, policy.settings)
    assert taught is not None
    labels = taught.labels
    assert taught.ids[-1] == policy.vocabulary.end_id
    assert labels[0] == IGNORED
    assert 0 < sum(label != IGNORED for label in labels) < len(labels)
    batch = collate(Lesson([5, 6, 7], [taught, taught]), policy.network.vocab_size)
    loss = lesson_loss(policy.network.peft, batch)
    assert loss.isfinite()
    assert loss.requires_grad


def test_an_edit_outside_the_grammar_is_left_out(policy: Policy) -> None:
    assert isinstance(policy.vocabulary, Vocabulary)
    blocks = (("DEPTH = 12  # transformer blocks", "DEPTH = = 14"),)
    assert encode_edit(TARGET, blocks, policy.tokenizer, policy.vocabulary, policy.settings) is None


def test_a_problem_without_templates_has_its_constants_moved(tmp_path: Path) -> None:
    none = read_levers(tmp_path / "levers.toml")
    assert none.every == ()
    rng = random.Random(0)
    drawn = [
        blocks
        for _ in range(100)
        if (blocks := draw_edit("learning_rate = 6e-4 # max\nbatch_size = 12\n", rng, 1, none))
    ]
    assert len(drawn) > 50
    assert {blocks[0][0].split(" = ")[0] for blocks in drawn} == {"learning_rate", "batch_size"}
    assert all(blocks[0][1].endswith("  # max") for blocks in drawn if blocks[0][0].startswith("learning_rate"))


def test_templates_of_a_problem_are_drawn_and_a_broken_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "levers.toml"
    path.write_text(
        "[options]\ngain = ['2', '3']\n[[lever]]\nkind = 'x'\nsearch = 'y = x'\nreplace = ['y = {gain} * x']\n"
    )
    rng = random.Random(0)
    drawn = {blocks for _ in range(20) if (blocks := draw_edit("y = x\n", rng, 1, read_levers(path)))}
    assert drawn == {(("y = x", "y = 2 * x"),), (("y = x", "y = 3 * x"),)}
    path.write_text("[[lever]]\nkind = 'x'\n")
    with pytest.raises(ConfigError, match=r"levers\.toml: a \[\[lever\]\] has kind"):
        read_levers(path)
