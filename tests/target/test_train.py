"""target/train.py and the paper's four findings: each is a small diff that applies, compiles and trains."""

from __future__ import annotations

import ast
import itertools
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from unidiff import PatchSet

TRAIN = Path(__file__).parents[2] / "target" / "train.py"
FINDINGS = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "findings").glob("*.diff"))}
TOY = {"WIDTH": 32, "HEAD_DIM": 16, "REPORT_EVERY": 1}
VOCAB, SEQ_LEN, STEPS = 64, 16, 30


class FakeRun(types.ModuleType):
    """Stands in for frozen_env: text in which each token follows from the one before, a budget of STEPS steps."""

    def __init__(self) -> None:
        super().__init__("frozen_env")
        self.started = False
        self.steps = 0
        self.rows: list[int] = []
        self.reports: list[tuple[int, float, float]] = []
        self.model: torch.nn.Module | None = None

    def vocab_size(self) -> int:
        return VOCAB

    def seq_len(self) -> int:
        return SEQ_LEN

    def budget_s(self) -> float:
        return 1.0

    def device(self) -> str:
        return "cpu"

    def seed(self) -> int:
        return 0

    def start(self) -> None:
        self.started = True

    def dummy_batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(VOCAB, (rows, SEQ_LEN + 1))
        return tokens[:, :-1], tokens[:, 1:]

    def next_batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.started, "no text before start()"
        self.rows.append(rows)
        first = torch.randint(VOCAB, (rows, 1))
        tokens = (first + 3 * torch.arange(SEQ_LEN + 1)) % VOCAB
        return tokens[:, :-1], tokens[:, 1:]

    def progress(self) -> float:
        share = min(1.0, self.steps / STEPS)
        self.steps += 1
        return share

    def report(self, step: int, loss: float, lr: float) -> None:
        self.reports.append((step, loss, lr))

    def submit(self, model: torch.nn.Module) -> None:
        self.model = model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    fake = FakeRun()
    monkeypatch.setitem(sys.modules, "frozen_env", fake)
    return fake


def apply(diff: str, source: str) -> str:
    """Apply a unified diff; every line that it removes or shows as context must occur, in one place only."""
    for hunk in PatchSet(diff)[0]:
        before = "".join(str(line)[1:] for line in hunk if not line.is_added)
        after = "".join(str(line)[1:] for line in hunk if not line.is_removed)
        assert source.count(before) == 1, f"hunk does not fit in exactly one place:\n{before}"
        source = source.replace(before, after)
    return source


def constants(source: str) -> dict[str, Any]:
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}  # type: ignore[attr-defined]


def toy(source: str, **changes: object) -> str:
    """Write toy sizes over the constants; depth and batch keep their proportions."""
    seed_sizes = constants(source)
    sizes = TOY | {"BATCH_ROWS": seed_sizes["BATCH_ROWS"] // 8, "DEPTH": seed_sizes["DEPTH"] // 6} | changes
    for name, value in sizes.items():
        source, count = re.subn(rf"^{name} = [^#]*", f"{name} = {value!r}  ", source, flags=re.M)
        assert count == 1, name
    return source


def run(source: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "train.py", "exec"), names)
    return names


SEED = TRAIN.read_text()
COMBINATIONS = [(name,) for name in FINDINGS] + list(itertools.permutations(FINDINGS))


# --- the seed ---------------------------------------------------------------------------------------------------------


def test_the_seed_learns_and_submits(env: FakeRun) -> None:
    run(toy(SEED, MUON_LR=2e-2))
    losses = [loss for _, loss, _ in env.reports]
    assert losses[0] == pytest.approx(math.log(VOCAB), rel=0.05)
    assert losses[-1] < 0.6 * losses[0]
    assert env.model is not None


def test_steps_are_reported_in_order_with_a_rate_that_falls_at_the_end(env: FakeRun) -> None:
    run(toy(SEED))
    assert [step for step, _, _ in env.reports] == list(range(1, STEPS))
    rates = [rate for _, _, rate in env.reports]
    assert max(rates) == constants(SEED)["MUON_LR"]
    assert rates[-1] < 0.1 * max(rates)


def test_all_parameters_are_trained_even_one_that_an_edit_adds(env: FakeRun) -> None:
    gain = "        self.mlp = MLP()\n"
    source = toy(SEED).replace(gain, gain + "        self.gain = nn.Parameter(torch.ones(WIDTH))\n")
    names = run(source.replace("self.mlp(norm(x_BTD))", "self.mlp(norm(x_BTD) * self.gain)"))
    assert env.model is not None
    trained = dict(env.model.named_parameters())
    torch.manual_seed(0)
    fresh = dict(names["build_model"]().named_parameters())
    assert [name for name in trained if torch.equal(trained[name], fresh[name])] == []


def test_the_model_is_causal_and_answers_shorter_rows(env: FakeRun) -> None:
    run(toy(SEED))
    assert env.model is not None
    tokens = torch.randint(VOCAB, (2, SEQ_LEN))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    with torch.no_grad():
        logits, other, short = env.model(tokens), env.model(changed), env.model(tokens[:, :9])
    assert logits.shape == (2, SEQ_LEN, VOCAB)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits[:, :9], other[:, :9], atol=1e-5)
    assert torch.allclose(logits[:, :9], short, atol=1e-5)
    assert not torch.allclose(logits[:, 9:], other[:, 9:], atol=1e-3)


def test_submitted_weights_fit_a_fresh_model_exactly(env: FakeRun) -> None:
    names = run(toy(SEED))
    assert env.model is not None
    fresh = names["build_model"]()
    fresh.load_state_dict(env.model.state_dict())
    tokens = torch.randint(VOCAB, (2, SEQ_LEN))
    with torch.no_grad():
        assert torch.equal(fresh(tokens), env.model(tokens))


def test_the_loss_compiles_as_one_graph(env: FakeRun) -> None:
    """What torch.compile does on a GPU, as far as it goes without a compiler: no graph break, no recompilation."""
    names = run(toy(SEED))
    model, (inputs, targets) = names["build_model"](), env.dummy_batch(3)
    compiled = torch.compile(names["loss_of"], backend="eager", fullgraph=True)
    with names["mixed_precision"](), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            assert torch.equal(compiled(model, inputs, targets), names["loss_of"](model, inputs, targets))


def test_the_preflight_leaves_no_trace_but_random_numbers(env: FakeRun) -> None:
    names = run(toy(SEED, WARMUP=0.0))  # the whole learning rate from the first step on
    torch.manual_seed(0)
    model = names["build_model"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names["preflight"](model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("line", "spoilt", "error"),
    [
        ("        return self.out(y_BHTK", "        return self.out(y_BHTK[..., 1:]", "shape"),
        ("            grads = torch.stack", "            grads = torch.cat", "."),
        (
            "        optimizer.step()",
            "        raise torch.cuda.OutOfMemoryError('CUDA out of memory')",
            "out of memory",
        ),
    ],
)
def test_what_breaks_a_step_breaks_it_before_the_clock_starts(env: FakeRun, line: str, spoilt: str, error: str) -> None:
    assert SEED.count(line) == 1
    with pytest.raises((RuntimeError, ValueError, IndexError), match=error):
        run(toy(SEED.replace(line, spoilt)))
    assert not env.started


def test_a_loss_is_read_only_for_a_report(env: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever brings a number from the device to the host waits for the device."""
    waits: list[str] = []
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def spy(self: torch.Tensor, *rest: Any, name: str = name, original: Any = original) -> Any:
            if env.started:
                waits.append(name)
            return original(self, *rest)

        monkeypatch.setattr(torch.Tensor, name, spy)
    run(toy(SEED, REPORT_EVERY=7))
    assert [step for step, _, _ in env.reports] == [7, 14, 21, 28]
    assert waits == ["item"] * 4


def test_orthogonalize_brings_singular_values_near_one(env: FakeRun) -> None:
    names = run(toy(SEED))
    for shape in ((3, 24, 96), (2, 96, 24)):
        values = torch.linalg.svdvals(names["orthogonalize"](torch.randn(shape)).float())
        assert values.min() > 0.3
        assert values.max() < 1.4


def test_the_learning_rate_rises_stays_and_falls(env: FakeRun) -> None:
    share = run(toy(SEED, WARMUP=0.1, WARMDOWN=0.5, FINAL_LR=0.2))["lr_share"]
    assert [round(share(x), 3) for x in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0, 1.0, 0.6, 0.2]


def test_the_seed_holds_the_levers_at_their_values_before_the_findings() -> None:
    levers = constants(SEED)
    assert (levers["MUON_LR"], levers["MUON_WD"], levers["DEPTH"]) == (2e-3, 0.1, 12)
    assert "normalize" not in SEED
    assert "return CLIP_NORM" in SEED


def test_the_file_is_short_and_easy_to_edit() -> None:
    lines = SEED.splitlines()
    assert len(lines) <= 260
    assert max(map(len, lines)) < 100
    assert all(re.match(r"[A-Z_]+ = .+  # \w", line) for line in lines if re.match(r"[A-Z_]+ =", line))
    imports = [node for node in ast.walk(ast.parse(SEED)) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {(getattr(node, "module", None) or node.names[0].name).partition(".")[0] for node in imports}
    assert roots <= {"torch", "math", "frozen_env"}


# --- the findings -----------------------------------------------------------------------------------------------------


def test_there_are_four_findings() -> None:
    assert set(FINDINGS) == {"muon_lr_wd", "qk_norm_batch", "clip_relax", "depth"}
    for diff in FINDINGS.values():
        assert diff.startswith("--- a/target/train.py\n+++ b/target/train.py\n@@ ")


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_findings_apply_alone_and_together_in_any_order(names: tuple[str, ...]) -> None:
    source = SEED
    for name in names:
        source = apply(FINDINGS[name], source)
    compile(source, "train.py", "exec")
    assert max(map(len, source.splitlines())) < 100


@pytest.mark.parametrize("names", [*((name,) for name in FINDINGS), tuple(FINDINGS)], ids="+".join)
def test_findings_train_alone_and_together(names: tuple[str, ...], env: FakeRun) -> None:
    source = SEED
    for name in names:
        source = apply(FINDINGS[name], source)
    run(toy(source))
    losses = [loss for _, loss, _ in env.reports]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_each_finding_is_what_the_paper_says(env: FakeRun) -> None:
    def after(name: str) -> dict[str, Any]:
        return constants(apply(FINDINGS[name], SEED))

    assert after("depth")["DEPTH"] == 14
    assert (after("muon_lr_wd")["MUON_LR"], after("muon_lr_wd")["MUON_WD"]) == (2.8e-3, 0.04)
    assert after("qk_norm_batch")["BATCH_ROWS"] == pytest.approx(1.2 * constants(SEED)["BATCH_ROWS"])
    clip = run(toy(apply(FINDINGS["clip_relax"], SEED)))["clip_norm"]
    assert [clip(share) for share in (0.0, 0.5, 1.0)] == [0.5, 0.75, 1.0]


def test_qk_norm_bounds_the_attention_logits_of_each_head(env: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(toy(apply(FINDINGS["qk_norm_batch"], SEED)))
    seen: list[torch.Tensor] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.extend([q, k])
        return attend(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    names["build_model"]()(torch.randint(VOCAB, (2, SEQ_LEN)))
    assert len(seen) > 0
    for tensor in seen:
        lengths = tensor.norm(dim=-1)
        assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)
