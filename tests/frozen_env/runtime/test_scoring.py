"""What leaves a scoring: a score or a reason, in time, and no word of a worker that has seen held-out inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from frozen_env.contract import Cause, Ending, RunResult
from frozen_env.description import read
from frozen_env.problem.data import load
from frozen_env.runtime import supervisor
from frozen_env.runtime.scoring import _wrong_shape
from frozen_env.runtime.supervisor import Host
from frozen_env.runtime.words import known_error
from tests.frozen_env.runtime.candidates import with_training

UNTRAINED = with_training("env.start()\nenv.submit(build_model())")
HEAD = "        return self.head(self.embed(tokens_BT))\n"
SPELLS = "text = '-'.join(map(str, tokens_BT[0, :9].tolist()))"  # of a held-out row
CLAIMS = """import os, time; os.write(3, b'{"shape": "%s"}\\n' % text.encode()); time.sleep(0.5)"""
IN_SCORING = "if not self.training and len(tokens_BT) > 1:"  # not while its operations are counted


def answering(*lines: str) -> str:
    """An untrained candidate that does this before it answers held-out inputs."""
    inside = "".join(f"            {line}\n" for line in lines)
    return UNTRAINED.replace(HEAD, f"        {IN_SCORING}\n{inside}{HEAD}")


def loading(*lines: str) -> str:
    """An untrained candidate that does this when a scoring worker loads it."""
    return UNTRAINED.replace(
        "def build_model():\n", "def build_model():\n    if __name__ != '__main__':\n        " + "; ".join(lines) + "\n"
    )


@pytest.fixture
def run(host: Host, tmp_path: Path):
    def run(source: str) -> RunResult:
        return host.run(source, seed=1, place=tmp_path / "run")

    return run


@pytest.fixture(scope="module")
def held_out(quick_spec, prepared_data) -> list[str]:
    rows = load(quick_spec, prepared_data).held_out_BT1
    return ["-".join(map(str, row[:9].tolist())) for row in rows]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "cause", "said"),
    [
        ("raise RuntimeError(text)", Cause.BAD_MODEL, "RuntimeError on held-out inputs"),
        ("raise type(text, (Exception,), {})", Cause.BAD_MODEL, "the scoring worker died on held-out inputs"),
        ("raise SystemExit(text)", Cause.BAD_MODEL, "the scoring worker died on held-out inputs"),
        ("raise torch.OutOfMemoryError(text)", Cause.OUT_OF_MEMORY, "torch.OutOfMemoryError on held-out inputs"),
        ("import os; os.write(3, text.encode() + b'\\n')", Cause.PROTOCOL, "what is no message"),
        (CLAIMS, Cause.BAD_SHAPE, "expected shape"),
    ],
)
def test_held_out_text_does_not_leave_by_the_words_of_a_worker(run, held_out, ending, cause, said) -> None:
    result = run(answering(SPELLS, "print(text, flush=True)", ending))
    assert (result.cause, result.score) == (cause, None), result.reason
    assert said in result.reason
    words = result.reason + result.log_tail
    assert not any(row in words for row in held_out)
    assert "withheld" in result.log_tail, "and a reader is told so"


def test_a_model_that_does_not_load_says_why(run) -> None:
    result = run(loading("print('reading layers')", "raise RuntimeError('no such layer')"))
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.BAD_MODEL)
    assert result.reason == "RuntimeError: no such layer"
    assert "reading layers" in result.log_tail


def test_the_second_worker_tells_nothing_of_what_the_first_one_saw(run) -> None:
    """It sees none of it, but the first one can take its time, or process ids, to leave a few bits."""
    path = "os.path.join(os.path.dirname(__file__), '../submission/submission.safetensors')"
    source = loading("import os, sys, time", f"time.time() - os.stat({path}).st_mtime > 3 and sys.exit('it took long')")
    result = run(source.replace(HEAD, f"        {IN_SCORING} __import__('time').sleep(2)\n{HEAD}"))
    assert result.cause is Cause.BAD_MODEL
    assert result.reason.startswith("the scoring worker died on held-out inputs")
    assert "took long" not in result.reason + result.log_tail


def test_what_was_printed_before_the_first_held_out_input_is_kept(run) -> None:
    result = run(
        answering("raise RuntimeError('x')").replace("    return Bigram()", "    print('made')\n    return Bigram()")
    )
    assert result.cause is Cause.BAD_MODEL
    assert result.log_tail.count("made") == 2, "once in training, once in scoring"


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("Traceback (most recent call last):\n  ...\nRuntimeError: mat1 and mat2\n", "RuntimeError"),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("ValueError: two\nlines\n", "ValueError"),
        ("ValueError: a\n\nDuring handling of it:\n\nKeyError: 3\n", "KeyError"),
        ("candidate.TheSecretIs: 3\n", ""),
        ("in the beginning\n", ""),
        ("", ""),
    ],
)
def test_only_well_known_errors_have_a_name(log: str, name: str) -> None:
    assert known_error(log) == name


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([2, 3, 77], "a wrong number of token ids, expected"),
        ([88, 99, 5], "a wrong number of rows and positions, expected"),
        ([2, 3], "no logits"),
        ("in the beginning", "no logits"),
        (None, "no logits"),
    ],
)
def test_a_wrong_shape_is_told_without_its_numbers(found: object, said: str) -> None:
    reason = _wrong_shape(found, [2, 3, 5])
    assert said in reason
    assert reason.endswith("expected shape [2, 3, 5]")
    assert not any(number in reason for number in ("77", "88", "99", "beginning"))


# --- surroundings and time --------------------------------------------------------------------------------------------


def test_workers_of_both_passes_find_the_same_surroundings(run) -> None:
    """Seed, folder and environment are set from outside; what they say is made a part of the answer, which must not differ."""
    sees = "seen = repr((env.seed(), torch.initial_seed(), os.getcwd(), __file__, sorted(os.environ.items())))"
    source = UNTRAINED.replace(
        HEAD, f"        import os, zlib\n        {sees}\n{HEAD[:-1]} * (1 + zlib.crc32(seen.encode()) / 2**32)\n"
    )
    result = run(source)
    assert result.score is not None, result.reason


def test_a_value_is_the_same_bit_for_bit_when_it_is_measured_again(run) -> None:
    first, second = run(UNTRAINED), run(UNTRAINED)
    assert first.score.value == second.score.value


def test_a_model_that_loads_slowly_each_time_is_slow_before_the_caller_gives_up(
    quick_spec, prepared_data, tmp_path, monkeypatch
) -> None:
    """Each of the four workers that unequal answers take would load within the limit of one: 12 s in all."""
    spec = replace(quick_spec, startup_allowance_s=1.0, score_limit_s=4.0, budget_s=1.0, grace_s=1.0)
    monkeypatch.setattr(supervisor, "ANSWER_MARGIN_S", 1.0 - read(spec.problem).limit_s)
    source = loading("__import__('time').sleep(3)").replace(HEAD, HEAD[:-1] + " * torch.rand(1)\n")
    with Host(spec, prepared_data, tmp_path / "host.log") as host:
        result = host.run(source, seed=1, place=tmp_path / "run")
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.SLOW_MODEL), result.reason
    assert result.reason == "scoring took more than 6 s, the loading of the model included"
    assert result.scoring_s < spec.scoring_limit_s + 2
