"""Data and metric of the built-in problem: text, its tokens, bits per byte. They are pinned with frozen_env itself."""

from frozen_env.problem.data import load as verify
from frozen_env.problem.data import prepare
from frozen_env.problem.language_model import LanguageModel

__all__ = ["open_problem", "prepare", "verify"]

open_problem = LanguageModel
