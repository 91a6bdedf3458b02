"""How runs end: each way a candidate can fail has an ending and a cause of its own, and leaves nothing behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from arl_core.edit import write_constants
from frozen_env.contract import Cause, Ending, Progress, RunResult, Verdict
from frozen_env.problem.data import TrainingOrder, load
from frozen_env.runtime.supervisor import Host
from frozen_env.spec import read_preset
from tests.frozen_env.runtime.candidates import GOOD, with_forward, with_training

TARGET = Path(__file__).resolve().parents[3] / "target" / "train.py"
EMBEDDED_TARGET = write_constants(TARGET.read_text(encoding="utf-8"), read_preset("embedded")["target"])


@pytest.fixture
def run(host: Host, tmp_path: Path):
    def run(source: str, **options) -> RunResult:
        result = host.run(source, seed=1, place=tmp_path, **options)
        assert host.running() == [], "a process outlived its run"
        return result

    return run


def test_a_good_candidate_is_scored_and_its_curve_kept(run, host):
    result = run(GOOD)
    assert result.ending is Ending.FINISHED, result.reason
    assert result.score is not None
    assert 1.0 < result.score.value < 4.0
    assert result.score.metric == "val_bpb"
    assert result.reports[-1].loss < result.reports[0].loss
    assert all(0 < report.fraction <= 1 for report in result.reports)
    # A step that begins as the budget ends trains on the last batch once more.
    assert result.tokens_served >= 4 * host.spec.seq_len * (len(result.reports) - 1)
    assert result.sandbox.startswith("landlock")
    assert result.environment_digest == host.environment_digest


def test_training_takes_the_budget_and_no_longer_than_its_grace(run, host):
    result = run(GOOD)
    assert host.spec.budget_s <= result.training_s <= host.spec.budget_s + host.spec.grace_s


@pytest.mark.parametrize(
    ("body", "ending", "cause", "words"),
    [
        ("raise RuntimeError('no such layer')", Ending.CRASHED, Cause.EXCEPTION, "RuntimeError: no such layer"),
        ("import os; os.kill(os.getpid(), 9)", Ending.CRASHED, Cause.SIGNAL, "SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", Ending.CRASHED, Cause.SIGNAL, "signal 40"),  # real-time: it has no name
        ("env.start(); env.report(1, float('nan'))", Ending.CRASHED, Cause.NAN, "nan at step 1"),
        ("env.start(); env.report(1, float('inf'))", Ending.CRASHED, Cause.NAN, "inf at step 1"),
        ("env.start()\nwhile True: pass", Ending.CRASHED, Cause.SILENCE, "no report for 1.2 s"),
        ("pass", Ending.CRASHED, Cause.NO_SUBMISSION, "without submit"),
        ("env.start()\nwhile True: env.report(1, 1.0)", Ending.TIMED_OUT, Cause.OVERRUN, "still training"),
        (
            "env.start()\nwhile env.progress() < 1: env.report(1, 1.0)\nwhile True: pass",
            Ending.TIMED_OUT,
            Cause.NO_SUBMISSION,
            "no submit()",
        ),
        ("import time\ntime.sleep(60)", Ending.TIMED_OUT, Cause.NO_START, "did not call start()"),
        (
            "x = torch.ones(200_000_000)\nimport time\ntime.sleep(30)",
            Ending.CRASHED,
            Cause.OUT_OF_MEMORY,
            "limit is 700",
        ),
        ("raise MemoryError('out of memory')", Ending.CRASHED, Cause.OUT_OF_MEMORY, "MemoryError"),
        (
            "raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 80.00 GiB.')",
            Ending.CRASHED,
            Cause.OUT_OF_MEMORY,
            "Tried to allocate 80.00 GiB",
        ),
        ("env.next_batch(1)", Ending.CRASHED, Cause.EXCEPTION, "call frozen_env.start()"),
        ("env.start()\nenv.next_batch(10**9)", Ending.CRASHED, Cause.EXCEPTION, "takes 1 to"),
        ("env.report(1, 1.0)\nwhile True: pass", Ending.REJECTED, Cause.PROTOCOL, "a report before start()"),
    ],
)
def test_each_failure_has_its_cause(run, body, ending, cause, words):
    result = run(with_training(body))
    assert (result.ending, result.cause) == (ending, cause), result.reason
    assert words in result.reason
    assert result.score is None


@pytest.mark.parametrize(
    ("forward", "ending", "cause", "words"),
    [
        ("good[..., :-1]", Ending.CRASHED, Cause.BAD_SHAPE, "expected"),
        ("good * float('nan')", Ending.CRASHED, Cause.NOT_FINITE, "not finite"),
        ("good + torch.randn_like(good)", Ending.REJECTED, Cause.NOT_DETERMINISTIC, "not deterministic"),
        ("good + good.mean(1, keepdim=True)", Ending.REJECTED, Cause.LOOKAHEAD, "change with the future"),
        (
            "good + 9 * F.one_hot(tokens_BT.roll(-1, 1), good.size(-1))",
            Ending.REJECTED,
            Cause.LOOKAHEAD,
            "change with the future",
        ),
    ],
)
def test_a_model_that_breaks_the_scorers_rules_gets_no_score(run, forward, ending, cause, words):
    # trained as the good model, so that only scoring can object
    source = with_forward(f"good if self.training else {forward}")
    result = run(source)
    assert (result.ending, result.cause) == (ending, cause), result.reason
    assert words in result.reason
    assert result.score is None


@pytest.mark.parametrize(
    ("line", "spoilt", "cause"),
    [
        ("        return self.out(y_BHTK", "        return self.out(y_BHTK[..., 1:]", Cause.EXCEPTION),
        (
            "        optimizer.step()",
            "        raise torch.cuda.OutOfMemoryError('CUDA out of memory')",
            Cause.OUT_OF_MEMORY,
        ),
    ],
)
def test_a_step_that_cannot_be_taken_fails_before_any_budget_is_spent(run, line, spoilt, cause):
    assert EMBEDDED_TARGET.count(line) == 1
    result = run(EMBEDDED_TARGET.replace(line, spoilt))
    assert (result.ending, result.cause) == (Ending.CRASHED, cause), result.reason
    assert (result.training_s, result.tokens_served) == (0.0, 0)


def test_a_worker_without_memory_is_out_of_memory(run):
    forward = "good if self.training else (_ for _ in ()).throw(torch.cuda.OutOfMemoryError('CUDA out of memory'))"
    result = run(with_forward(forward))
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.OUT_OF_MEMORY), result.reason


def test_a_run_tells_how_well_it_used_its_time(run, host):
    result = run(GOOD)
    known = result.extra["performance"]
    assert known["device"] == "cpu"
    assert known["tokens_per_s"] == pytest.approx(result.tokens_served / result.training_s)
    assert 0.2 < known["step_share"] <= 1
    assert 0 < known["wait_share"] < 1
    assert known["parameters"] == 2 * 32 * host.spec.vocab_size
    assert known["flops_per_token"] == 3 * 2 * 32 * host.spec.vocab_size
    assert (known["mfu"], known["peak_vram_mb"]) == (None, None)


def test_rows_come_in_the_seeds_order_whatever_the_batches(run, host, prepared_data):
    sizes = [4, 4, 2, 7, 1, 12, 3]
    body = f"""
env.start()
for rows in {sizes}:
    print(*env.next_batch(rows)[0].sum(1).tolist())
raise SystemExit(3)
"""
    words = run(with_training(body)).log_tail.split()
    expected = TrainingOrder(load(host.spec, prepared_data).train_tokens, host.spec.seq_len, seed=1).take(sum(sizes))
    assert [int(word) for word in words] == expected[:, :-1].sum(1, dtype=int).tolist()


def test_the_clock_takes_a_late_start_from_the_budget(run, host):
    late = host.spec.startup_allowance_s + 0.5
    result = run(GOOD.replace("def train():\n", f"def train():\n    import time\n    time.sleep({late})\n"))
    assert result.ending is Ending.FINISHED, result.reason
    assert result.training_s < host.spec.budget_s - 0.3


def test_a_late_starter_s_schedule_ends_when_its_clock_does(run, host):
    late = host.spec.startup_allowance_s + 0.5
    slept = GOOD.replace("def train():\n", f"def train():\n    import time\n    time.sleep({late})\n")
    asked = []

    def judge(progress: Progress) -> Verdict:
        asked.append(progress.fraction / (progress.elapsed_s / host.spec.budget_s))
        return Verdict(stop=False, reason="", fraction=progress.fraction)

    result = run(slept.replace("1e-2)\n    env.submit", "env.progress())\n    env.submit"), judge=judge)
    told = [report.lr for report in result.reports if report.lr is not None and report.lr < 1.0]
    assert told[-1] > 0.9, "its own progress jumps to 1 from far below"
    assert result.reports[-1].fraction > 0.9
    assert asked
    assert min(asked) > 1.05, "verdicts are asked at a share of the time that was granted"


def test_a_stop_verdict_ends_the_run_with_its_evidence(run):
    def judge(progress: Progress) -> Verdict:
        return Verdict(stop=progress.fraction > 0.3, reason="hopeless", forecast=2.5, fraction=progress.fraction)

    result = run(GOOD, judge=judge)
    assert (result.ending, result.cause, result.reason) == (Ending.STOPPED, Cause.VERDICT, "hopeless")
    assert [verdict.stop for verdict in result.verdicts] == [False] * (len(result.verdicts) - 1) + [True]
    assert result.training_s < 1.6


def test_the_log_is_bounded_and_its_tail_kept(run, tmp_path, host):
    result = run(with_training("print('x' * 1_000_000)\nraise RuntimeError('the end')"))
    assert result.reason == "RuntimeError: the end"
    assert (tmp_path / "log.txt").stat().st_size <= host.spec.log_limit_kb * 1024


@pytest.mark.parametrize(
    "attempt",
    [
        "open({data!r} + '/problem')",
        "open('/proc/' + str(os.getppid()) + '/environ').read()",
        "open({repo!r} + '/Makefile')",
        "open(os.path.expanduser('~root') + '/.profile')",
        "open('/etc/passwd')",
        "open({repo!r} + '/stolen', 'w')",
        "open('/tmp/stolen', 'w')",
        "os.kill(os.getppid(), 0)",
        "os.symlink('/etc/passwd', 'link') or open('link')",
    ],
)
def test_a_confined_candidate_cannot(run, attempt, prepared_data):
    repo = str(Path(__file__).resolve().parents[3])
    body = f"""
import os
try:
    {attempt.format(data=str(prepared_data), repo=repo)}
except (PermissionError, IsADirectoryError) as error:
    assert "denied" in str(error) or "permitted" in str(error), error
    raise SystemExit("refused")
raise SystemExit("it could")
"""
    result = run(with_training(body))
    assert result.reason == "refused"


def test_no_process_survives_a_run_however_it_forks(run):
    body = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
env.start()
raise RuntimeError('left a daemon')
"""
    assert run(with_training(body)).reason == "RuntimeError: left a daemon"


def test_the_environment_of_a_candidate_holds_no_secrets(host, quick_spec, prepared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Host(quick_spec, prepared_data, tmp_path / "host.log") as fresh:
        result = fresh.run(
            with_training("import os\nprint(sorted(os.environ))\nraise SystemExit(3)"), seed=0, place=tmp_path
        )
    assert "PATH" in result.log_tail
    assert "KEY" not in result.log_tail
    assert "SECRET" not in result.log_tail.upper()


def test_a_candidate_makes_temporary_files_where_it_may_write(run):
    """Triton and Inductor do, without saying where; the warm interpreter had settled on /tmp before it was forked."""
    body = """
import os, tempfile
with tempfile.NamedTemporaryFile(suffix='.ptx') as file:
    print(os.path.dirname(file.name) == os.environ['TMPDIR'])
raise SystemExit(3)
"""
    assert run(with_training(body)).log_tail.split() == ["True"]


def test_a_candidate_compiles_in_its_own_process(run):
    body = """
import torch._inductor.config as config
print(config.compile_threads, config.cpp_cache_precompile_headers)
raise SystemExit(3)
"""
    assert run(with_training(body)).log_tail.split() == ["1", "False"]


def test_closing_the_host_ends_the_candidate_in_flight(quick_spec, prepared_data, tmp_path):
    host = Host(quick_spec, prepared_data, tmp_path / "host.log")
    host.start()
    host.wait_ready()
    pids: list[int] = []

    def close_when_started(event) -> None:
        if event["event"] == "started":
            pids.extend(host.running())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.run(GOOD, seed=0, place=tmp_path, on_event=close_when_started)
    host.close()
    assert pids
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "the candidate outlived its host"
        time.sleep(0.05)
