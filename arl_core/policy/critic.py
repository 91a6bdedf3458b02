"""The critic: what would come of a program like this one? It says which of several sampled edits is worth an experiment.

A Gaussian process over programs, fitted to the campaign's own experiments and to nothing else. Two programs are alike when
their constants are near one another, each on its natural scale, and when few of their other lines differ: a line
counts with the function or class that it stands in, each copy of it by itself. A few hundred results are far too few for a
policy gradient to learn which constants matter and where to; this model learns it from them. The choice by a draw from the
posterior (Thompson sampling) tries what may be good, not only what is known to be.

Legend of shapes: N known programs, C candidates, P numeric constants, W different other lines.

Source: Rasmussen and Williams 2006, Gaussian Processes for Machine Learning: equations 2.25 and 2.26 (posterior), 4.17 (Matérn
5/2), 5.8 and 5.9 (evidence and its gradient). Thompson 1933 for the draw.
"""

from __future__ import annotations

import ast
import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from arl_core.edit import read_constants
from arl_core.policy.synthesis import SHARES
from frozen_env.constants import constant_statements, parse_quietly

Array = NDArray[np.float64]

LEAST = 12  # results before the critic has an opinion
MOST_FITTED = (
    256  # results that the kernel's lengths are fitted on, the latest; the posterior uses all that it is given
)
FIT_STEPS = 25
TYPICAL_LENGTH = 2.0  # prior median of a kernel length: a factor of e² between learning rates makes strangers
TYPICAL_LINES = 4.0  # two changed lines, each out and in
LENGTH_SPREAD = 2.2  # prior standard deviation of a log length
NOISE_BOUNDS = (1e-4, 1.0)  # noise variance over signal variance
JITTER = 1e-8
MORE_JITTER = (0.0, 1e-6, 1e-4, 1e-2)  # tried in turn where rounding leaves no positive definite matrix
READ_KEPT = 1024  # programs read, the latest: all that a fit and a pool hold
SHARE_UNIT = 1 / 3  # a share (0 to 1) counts three times, as a factor of e³ does
FAR = 1e6  # a value that lies further out is a word: squares of distances would lose their digits, or overflow
NEAR_ZERO = 0.1  # below this part of the first program's value a constant is measured linearly, above in logs


class Critic:
    """Fitted once on programs [N] and their losses [N]: lower is better, None for one that left no value.

    `scale` is a loss difference that matters (reward.scale): what is ten times worse than the best is as bad as a failure.
    Deterministic: the same results give the same critic.
    """

    def __init__(self, programs: Sequence[str], losses: Sequence[float | None], scale: float) -> None:
        if len(programs) != len(losses) or scale <= 0:
            raise ValueError(
                f"as many losses as programs, and a scale above 0: got {len(losses)}, {len(programs)}, {scale}"
            )
        values_N = np.array([np.nan if loss is None else loss for loss in losses], dtype=float)
        self.ready = int(np.isfinite(values_N).sum()) >= LEAST and float(np.nanstd(values_N)) > 0
        if not self.ready:
            return
        self._reader = _Reader(programs[0])
        self._known = [self._reader.read(program) for program in programs]
        bad = 10 * scale
        with np.errstate(invalid="ignore"):
            excess_N = np.where(np.isfinite(values_N), values_N - np.nanmin(values_N), np.inf)
        self._loss_N = bad * np.tanh(excess_N / bad)
        self._mean = float(self._loss_N.mean())
        recent = slice(-MOST_FITTED, None)
        numbers_NP, words_NW = self._tables([])
        self._logs = _fit(numbers_NP[recent], words_NW[recent], self._loss_N[recent] - self._mean)

    def draw(self, programs: Sequence[str], seed: int) -> Array:
        """Return one draw from the posterior of the programs' losses above the best, [C]; zeros before it is ready."""
        if not self.ready:
            return np.zeros(len(programs))
        mean_C, covariance_CC = self.predict(programs)
        values, vectors = np.linalg.eigh(covariance_CC)
        normal_C = np.random.default_rng(seed).standard_normal(len(mean_C))
        draw_C: Array = mean_C + vectors @ (np.sqrt(np.maximum(values, 0.0)) * normal_C)
        return draw_C

    def choose(self, programs: Sequence[str], seeds: Sequence[int]) -> list[int]:
        """Return a place for each seed, at most one for each program: the lowest of a draw of its own, no place twice."""
        chosen: list[int] = []
        for seed in seeds[: len(programs)]:
            loss_C = self.draw(programs, seed)
            loss_C[chosen] = np.inf
            chosen.append(int(np.argmin(loss_C)))
        return chosen

    def predict(self, programs: Sequence[str]) -> tuple[Array, Array]:
        """Return mean [C] and covariance [C, C] of the programs' losses above the best. ValueError before it is ready."""
        if not self.ready:
            raise ValueError(f"the critic needs {LEAST} different results")
        count = len(self._known)
        numbers, words = self._tables([self._reader.read(program) for program in programs])
        alike = _alike(torch.from_numpy(numbers), torch.from_numpy(words), torch.from_numpy(self._logs)).numpy()
        noise = float(np.exp(self._logs[-1]))
        lower_NN = _lower(torch.from_numpy(alike[:count, :count] + (noise + JITTER) * np.eye(count))).numpy()
        half_N = np.linalg.solve(lower_NN, self._loss_N - self._mean)
        half_NC = np.linalg.solve(lower_NN, alike[:count, count:])
        signal = float(half_N @ half_N) / count
        covariance_CC = signal * (alike[count:, count:] - half_NC.T @ half_NC)
        return self._mean + half_NC.T @ half_N, (covariance_CC + covariance_CC.T) / 2

    def _tables(self, more: list[_Read]) -> tuple[Array, Array]:
        """Return the known programs and then `more` as numbers [N + C, P] and lines [N + C, W] of 0 and 1."""
        rows = [*self._known, *more]
        vocabulary = sorted(set().union(*(words for _, words in rows)))
        place = {word: column for column, word in enumerate(vocabulary)}
        words = np.zeros((len(rows), len(vocabulary)))
        for row, (_, present) in enumerate(rows):
            words[row, [place[word] for word in present]] = 1.0
        return np.array([numbers for numbers, _ in rows]).reshape(len(rows), -1), words


_Read = tuple[list[float], frozenset[str]]  # the constants of the first program as numbers; everything else, as lines


class _Reader:
    """Reads programs as points, seen from the first one: its numeric constants are the axes."""

    def __init__(self, first: str) -> None:
        numbers = {name: _number(value) for name, value in read_constants(first).items()}
        self._start = {name: number for name, number in numbers.items() if number is not None}

    def read(self, program: str) -> _Read:
        known, lines = _taken_apart(program)
        constants, numbers, words = dict(known), [], set(lines)
        for name, start in self._start.items():
            value = constants.pop(name, None)
            number = _number(value)
            point = None if number is None else _on_scale(name, number, start)
            if point is None or abs(point) > FAR:
                words.add(f"{name} = {_spelled(value)}")
                point = _on_scale(name, start, start)
            numbers.append(point)
        for name, value in constants.items():
            letters = enumerate(value) if isinstance(value, str) else [(0, value)]
            words |= {f"{name}[{place}] = {_spelled(letter)}" for place, letter in letters}
        return numbers, frozenset(words)


@functools.lru_cache(maxsize=READ_KEPT)
def _taken_apart(program: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The constants and the other lines of a program, not to be changed: every fit reads all of them, and parsing is dear."""
    constants = read_constants(program)
    return constants, tuple(_other_lines(program, set(constants)))


def _number(value: object) -> float | None:
    """Return a value as a finite float; None for what is none, as text, booleans, 1e999 and 524288 ** 64 are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _spelled(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a huge integer"


def _on_scale(name: str, value: float, start: float) -> float:
    """Return a constant's place on its axis; infinite where the scale overflows."""
    if start == 0 or (SHARES.search(name) and 0 < start <= 1):
        return value / SHARE_UNIT
    return float(np.arcsinh(value / (NEAR_ZERO * abs(start))))


def _other_lines(program: str, constants: set[str]) -> Iterator[str]:
    """Every normalised line, without comments and without the constants that can be read, as one word: where it stands, what
    it says, and which of its kind it is there."""
    try:
        module = parse_quietly(program)
        statements = {id(one) for one in constant_statements(module) if _target(one) in constants}
        lines = list(_scoped([one for one in module.body if id(one) not in statements], ""))
    except (SyntaxError, ValueError, RecursionError):  # ValueError: a huge integer, as in _spelled
        lines = [("", line) for line in program.splitlines()]
    copies: Counter[tuple[str, str]] = Counter()
    for scope, line in lines:
        copies[scope, line] += 1
        yield f"{scope}: {line} #{copies[scope, line]}"


def _scoped(body: list[ast.stmt], scope: str) -> Iterator[tuple[str, str]]:
    """Every line with the dotted name of the function or class that it stands in. Takes the statements apart."""
    for statement in body:
        here, inner = scope, list[ast.stmt]()
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            here = f"{scope}.{statement.name}"
            inner, statement.body = statement.body, []
        for line in ast.unparse(statement).splitlines():
            yield here, line
        yield from _scoped(inner, here)


def _target(statement: ast.Assign | ast.AnnAssign) -> str:
    return ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)


# --- the kernel and its fit -------------------------------------------------------------------------------------------


def _alike(numbers_NP: Tensor, words_NW: Tensor, logs: Tensor) -> Tensor:
    """Return how alike programs are, [N, N], 1 for the same: Matérn 5/2 over constants times exp(-changed lines / length)."""
    scaled_NP = numbers_NP / torch.exp(logs[:-2])
    # By differences, not by the inner product: of far numbers it would leave no digit of a small distance.
    distance_NN = torch.cdist(scaled_NP, scaled_NP, compute_mode="donot_use_mm_for_euclid_dist")
    reach_NN = math.sqrt(5) * distance_NN
    near_NN = (1 + reach_NN + reach_NN.square() / 3) * torch.exp(-reach_NN)
    size_N = words_NW.sum(1)
    changed_NN = size_N[:, None] + size_N[None] - 2 * words_NW @ words_NW.T
    return near_NN * torch.exp(-changed_NN / torch.exp(logs[-2]))


def _lower(cover_NN: Tensor) -> Tensor:
    """Return the Cholesky factor. Squares of far distances round, and a matrix may come out just short of positive definite."""
    for more in MORE_JITTER:
        lower_NN: Tensor
        lower_NN, failed = torch.linalg.cholesky_ex(cover_NN + more * torch.eye(len(cover_NN), dtype=cover_NN.dtype))
        if not int(failed):
            return lower_NN
    raise ValueError("the kernel's matrix is far from positive definite")


def _fit(numbers_NP: Array, words_NW: Array, centred_N: Array) -> Array:
    """Return the logs of P lengths, of the lines' length and of the noise share under which the losses are likeliest."""
    numbers, words, losses_N = map(torch.from_numpy, (numbers_NP, words_NW, centred_N))
    typical = np.log([*[TYPICAL_LENGTH] * numbers_NP.shape[1], TYPICAL_LINES])
    eye_NN = torch.eye(len(losses_N), dtype=torch.float64)

    def minus_log(point: Array) -> tuple[float, Array]:
        logs = torch.from_numpy(point).requires_grad_()
        cover_NN = _alike(numbers, words, logs) + (torch.exp(logs[-1]) + JITTER) * eye_NN
        lower_NN = _lower(cover_NN)
        half_N = torch.linalg.solve_triangular(lower_NN, losses_N[:, None], upper=False)
        # The signal's variance has a closed form, given the rest.
        value = len(losses_N) / 2 * torch.log(half_N.square().mean()) + lower_NN.diagonal().log().sum()
        value = value + (((logs[:-1] - torch.from_numpy(typical)) / LENGTH_SPREAD) ** 2).sum() / 2
        torch.autograd.backward(value)
        assert logs.grad is not None
        return float(value.detach()), logs.grad.numpy()

    bounds = [(np.log(0.05), np.log(50.0))] * len(typical) + [tuple(np.log(NOISE_BOUNDS))]
    start = np.append(typical, np.log(0.01))
    found = minimize(minus_log, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": FIT_STEPS})
    return np.asarray(found.x if np.isfinite(found.fun) else start, dtype=float)
