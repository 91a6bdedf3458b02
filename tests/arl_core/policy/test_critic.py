"""The critic: a Gaussian process over programs that says what would come of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from arl_core.policy import critic as module
from arl_core.policy.critic import LEAST, Critic, _Reader

PROGRAM = """DEPTH = {depth}  # blocks
LR = {lr}
PATTERN = {pattern!r}
WARMUP_RATIO = {warmup}
TALK = {talk}


def act(x):
    return {act}(x)
"""
FIRST = {"depth": 8, "lr": 0.04, "pattern": "SSL", "warmup": 0.1, "talk": 3.0, "act": "relu"}


def program(**changes: object) -> str:
    return PROGRAM.format(**{**FIRST, **changes})


def drawn(count: int, seed: int = 0) -> list[dict[str, object]]:
    """Settings as a campaign would try them; the first is the untouched one."""
    rng = np.random.default_rng(seed)
    moves = [
        {
            "lr": 0.04 * float(np.exp(rng.normal())),
            "depth": int(rng.integers(4, 13)),
            "talk": float(np.exp(rng.normal())),
        }
        for _ in range(count - 1)
    ]
    return [{}, *moves]


def truth(setting: dict[str, object]) -> float:
    """Best at a learning rate of 0.02 and ten blocks; TALK does nothing."""
    known = {**FIRST, **setting}
    return 1.0 + 0.01 * np.log(float(str(known["lr"])) / 0.02) ** 2 + 0.001 * (int(str(known["depth"])) - 10) ** 2


def taught(count: int = 60, noise: float = 0.0005, scale: float = 0.01) -> Critic:
    rng = np.random.default_rng(9)
    settings = drawn(count)
    return Critic([program(**one) for one in settings], [truth(one) + noise * rng.normal() for one in settings], scale)


def test_it_ranks_programs_that_it_never_saw() -> None:
    new = drawn(40, seed=1)[1:]
    mean, _ = taught().predict([program(**one) for one in new])
    assert spearmanr(mean, [truth(one) for one in new]).statistic > 0.9


def test_its_posterior_is_that_of_a_textbook_gaussian_process() -> None:
    critic = taught()
    new = [program(**one) for one in drawn(8, seed=2)]
    numbers, _ = critic._tables([critic._reader.read(one) for one in new])
    count = len(numbers) - len(new)
    lengths, share = np.exp(critic._logs[:-2]), float(np.exp(critic._logs[-1]))
    oracle = GaussianProcessRegressor(Matern(lengths, nu=2.5), alpha=share + 1e-8, optimizer=None)
    centred = critic._loss_N - critic._mean
    oracle.fit(numbers[:count], centred)
    mean, covariance = oracle.predict(numbers[count:], return_cov=True)
    signal = (
        centred
        @ np.linalg.solve(Matern(lengths, nu=2.5)(numbers[:count]) + (share + 1e-8) * np.eye(count), centred)
        / count
    )
    found_mean, found_covariance = critic.predict(new)
    assert found_mean - critic._mean == pytest.approx(mean, abs=1e-6)
    assert found_covariance == pytest.approx(signal * covariance, abs=1e-8)


def test_a_constant_without_effect_gets_the_longest_length() -> None:
    critic = taught()
    lengths = dict(zip(critic._reader._start, np.exp(critic._logs[:-2]), strict=True))
    assert lengths["TALK"] > 3 * max(lengths["LR"], lengths["DEPTH"])


def test_draws_have_the_posteriors_mean_and_spread() -> None:
    critic = taught(count=LEAST)
    new = [program(lr=0.3), program(lr=0.001), program(depth=4)]
    mean, covariance = critic.predict(new)
    draws = np.array([critic.draw(new, seed) for seed in range(4000)])
    assert draws.mean(axis=0) == pytest.approx(mean, abs=4 * float(np.sqrt(covariance.diagonal().max() / 4000)))
    assert np.cov(draws.T) == pytest.approx(covariance, rel=0.15, abs=1e-5)


def test_it_keeps_away_from_programs_like_those_that_failed() -> None:
    settings = drawn(60)
    losses = [None if int(str(one.get("depth", 8))) > 9 else truth(one) for one in settings]
    mean, _ = Critic([program(**one) for one in settings], losses, 0.01).predict([program(depth=12), program(depth=8)])
    assert mean[0] > mean[1] + 0.03


def test_it_learns_what_a_changed_line_and_a_letter_of_a_pattern_do() -> None:
    settings = [
        {**one, "act": ("relu", "silu")[i % 2], "pattern": ("SSL", "SLL")[i // 2 % 2]}
        for i, one in enumerate(drawn(60))
    ]
    losses = [truth(one) + 0.02 * (one["act"] == "relu") + 0.01 * (one["pattern"] == "SSL") for one in settings]
    critic = Critic([program(**one) for one in settings], losses, 0.01)
    silu, letter, neither = critic.predict([program(act="silu"), program(pattern="SLL"), program()])[0]
    assert silu < letter < neither


def test_losses_and_scale_in_other_units_change_nothing_but_the_units() -> None:
    settings = drawn(30)
    programs, losses = [program(**one) for one in settings], np.array([truth(one) for one in settings])
    new = [program(lr=0.02), program(lr=0.2)]
    one, other = Critic(programs, list(losses), 0.01), Critic(programs, list(100 * losses), 1.0)
    assert other.predict(new)[0] == pytest.approx(100 * one.predict(new)[0], rel=1e-3)


def test_the_same_results_give_the_same_critic() -> None:
    new = [program(lr=0.02), program(lr=0.2)]
    assert list(taught().draw(new, 5)) == list(taught().draw(new, 5))


@pytest.mark.parametrize(
    "odd", ["LR = (", "", "import os\n", PROGRAM.replace("LR = {lr}", "LR = abs(-1)").format(**FIRST)]
)
def test_it_reads_programs_that_lost_a_constant_or_do_not_parse(odd: str) -> None:
    mean, covariance = taught().predict([odd, program()])
    assert np.isfinite(mean).all()
    assert covariance[0, 0] > covariance[1, 1]


@pytest.mark.parametrize("value", ["524288 ** 64", "1e999", "-1e999", "1e999 - 1e999", "1e300", "0x" + "f" * 4000])
@pytest.mark.parametrize("name", ["LR", "WARMUP_RATIO", "DEPTH"])
def test_a_constant_that_is_no_sensible_number_is_another_word(name: str, value: str) -> None:
    lines = [f"{name} = {value}" if line.startswith(name) else line for line in program().splitlines()]
    critic = taught()
    mean, covariance = critic.predict(["\n".join(lines), program()])
    assert np.isfinite(mean).all()
    assert np.isfinite(covariance).all()
    assert covariance[0, 0] > covariance[1, 1]


@pytest.mark.parametrize("value", ["524288 ** 64", "1e999"])
def test_it_starts_from_programs_with_such_a_constant_too(value: str) -> None:
    settings = drawn(30)
    texts = [program(**one) + f"LIMIT = {value}\n" for one in settings]
    mean, _ = Critic(texts, [truth(one) for one in settings], 0.01).predict([texts[0], program()])
    assert np.isfinite(mean).all()


TWICE = """class A:
    def f(self):
        x = 1
        x = 1

    def g(self):
        y = 2
"""


@pytest.mark.parametrize(
    "other",
    [
        TWICE.replace("        x = 1\n        x = 1\n", "        x = 1\n"),
        TWICE.replace("        x = 1\n", "        x = 1\n        x = 1\n", 1),
        TWICE.replace("        x = 1\n", "", 1).replace("y = 2", "y = 2\n        x = 1"),
        TWICE.replace("class A", "class B"),
    ],
    ids=["one of two copies deleted", "copied once more", "moved to another function", "in another class"],
)
def test_every_copy_of_a_line_counts_in_its_place(other: str) -> None:
    reader = _Reader(program())
    words, changed = reader.read(program() + TWICE)[1], reader.read(program() + other)[1]
    assert words != changed
    assert reader.read(program() + TWICE + "# a comment\n")[1] == words


def test_a_changed_line_is_one_word_out_and_one_in() -> None:
    reader = _Reader(program())
    assert len(reader.read(program() + TWICE)[1] ^ reader.read(program() + TWICE.replace("y = 2", "y = 3"))[1]) == 2


def test_programs_that_inherit_a_far_value_are_as_alike_as_they_are() -> None:
    """A constant that began at 0 is measured linearly, so its squares are large; programs that share it do not differ by it."""
    near = drawn(30)
    far = [program(**one, warmup=0.1).replace("TALK = ", "SEED = 300007\nTALK = ") for one in near]
    first = far[0].replace("300007", "0")
    losses = [abs(float(np.log(one["lr"] / 0.04))) for one in near if "lr" in one]
    here = Critic([first, *far[1:]], [0.5, *losses], 0.5)
    there = Critic([first, *(one.replace("300007", "0") for one in far[1:])], [0.5, *losses], 0.5)
    asked = far[5:9]
    mean_C, covariance_CC = here.predict(asked)
    wanted_C, _ = there.predict([one.replace("300007", "0") for one in asked])
    assert np.isfinite(covariance_CC).all()
    assert np.corrcoef(mean_C, wanted_C)[0, 1] > 0.95


def test_a_matrix_that_rounding_has_spoilt_is_mended_and_no_other() -> None:
    spoilt = torch.ones(40, 40, dtype=torch.float64) - 1e-7 * torch.eye(40, dtype=torch.float64)
    lower = module._lower(spoilt)
    assert float((lower @ lower.T - spoilt).abs().max()) < 1e-3
    with pytest.raises(ValueError, match="far from positive definite"):
        module._lower(-torch.eye(3, dtype=torch.float64))


def test_a_program_is_parsed_once_however_often_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = drawn(20, seed=77)
    programs = [program(**one) for one in settings]
    losses = [float(i % 7) for i in range(20)]
    Critic(programs, losses, 1.0)
    monkeypatch.setattr(module, "read_constants", lambda _: pytest.fail("parsed again"))
    monkeypatch.setattr(module, "_Reader", lambda _: reader)
    reader = object.__new__(_Reader)
    reader._start = {"DEPTH": 8.0, "LR": 0.04}
    Critic(programs, losses, 1.0)


def test_with_too_few_results_it_has_no_opinion() -> None:
    settings = drawn(LEAST + 5)
    losses = [truth(one) if i < LEAST - 1 else None for i, one in enumerate(settings)]
    critic = Critic([program(**one) for one in settings], losses, 0.01)
    assert list(critic.draw([program(), program(lr=1.0)], 0)) == [0.0, 0.0]
    with pytest.raises(ValueError, match=f"needs {LEAST}"):
        critic.predict([program()])


@pytest.mark.parametrize(("programs", "losses", "scale"), [(["A = 1"], [], 1.0), ([], [], 0.0)])
def test_impossible_input_is_refused(programs: list[str], losses: list[float], scale: float) -> None:
    with pytest.raises(ValueError, match="as many losses"):
        Critic(programs, losses, scale)
