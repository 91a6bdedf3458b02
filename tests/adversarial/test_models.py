"""Submitted models that know the future, remember, or confuse the measurement get no score, each with its own cause."""

from __future__ import annotations

import numpy as np
import pytest

from frozen_env.contract import Ending
from frozen_env.problem.bits import nats_per_token
from tests.adversarial.models import MODELS, ModelAttack
from tests.frozen_env.runtime.candidates import GOOD, with_forward, with_training

GAINING = [attack for attack in MODELS if attack.gains]
HONEST = with_training("env.start()\nenv.submit(build_model())")


@pytest.mark.parametrize("attack", MODELS, ids=str)
def test_a_hostile_model_gets_no_score(attack: ModelAttack, guarded) -> None:
    result = guarded(attack.source)
    assert (result.ending, result.cause) == (attack.ending, attack.cause), result.reason
    assert attack.words in result.reason
    assert result.score is None


@pytest.mark.parametrize("attack", GAINING, ids=str)
def test_the_same_model_gains_where_nothing_is_probed(attack: ModelAttack, unguarded) -> None:
    cheat, honest = unguarded(attack.source), unguarded(GOOD if attack.trained else HONEST)
    assert cheat.score is not None, cheat.reason
    assert honest.score is not None, honest.reason
    assert cheat.score.value < 0.95 * honest.score.value


def test_memory_would_hide_the_future_from_a_probe_in_the_same_process() -> None:
    """What fresh workers are for: asked twice in one process, the model that remembers answers the past as before."""
    import torch
    from torch import nn

    from tests.adversarial.models import REMEMBERS

    code = "def forward(self, tokens_BT, good):\n" + "".join(f"    {line}\n" for line in REMEMBERS.strip().splitlines())
    namespace = {"torch": torch, "F": nn.functional}
    exec(code, namespace)
    model, good = nn.Module(), torch.zeros(1, 4, 8)
    row, spliced = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 7, 4]])
    first = namespace["forward"](model, row, good)
    assert first[0, 1, 3] > 1, "it does look ahead"
    assert torch.equal(namespace["forward"](model, spliced, good), first), "and hides it"
    assert not torch.equal(namespace["forward"](nn.Module(), spliced, good), first), "but not in a fresh process"


def test_unnormalised_logits_gain_nothing(guarded) -> None:
    honest = guarded(HONEST)
    shifted = guarded(with_forward("good - 1000").replace(_training_of(GOOD), _training_of(HONEST)))
    assert shifted.ending is Ending.FINISHED, shifted.reason
    assert shifted.score.value == pytest.approx(honest.score.value, abs=1e-3)


def test_a_scorer_that_trusts_the_scale_of_logits_would_be_fooled() -> None:
    logits, targets = np.zeros((1, 1, 4), np.float32) + 7, np.zeros((1, 1), np.int64)
    assert -logits[0, 0, 0] < 0, "as negative log-probabilities these would be better than certainty"
    assert nats_per_token(logits, targets)[0, 0] == pytest.approx(np.log(4))


def test_one_hot_logits_are_scored_as_the_bad_guess_that_they_are(guarded) -> None:
    hot = "1e6 * F.one_hot(good.argmax(-1), good.size(-1)).float()"
    result = guarded(with_forward(hot).replace(_training_of(GOOD), _training_of(HONEST)))
    assert result.ending is Ending.FINISHED, result.reason
    assert result.score.value > 1000


def test_false_losses_do_not_reach_the_score(guarded) -> None:
    lies = "env.start()\nprint('val_bpb 0.1')\nenv.report(1, 0.001)\nenv.submit(build_model())"
    lying, honest = guarded(with_training(lies)), guarded(HONEST)
    assert lying.reports[-1].loss == 0.001, "a supervisor that took its word would keep it"
    assert "val_bpb 0.1" in lying.log_tail
    assert lying.score.value == honest.score.value


def _training_of(source: str) -> str:
    return source[source.index("def train():") :]
