"""Small candidates for tests: a good one, and ways to spoil it."""

from __future__ import annotations

GOOD = """
import torch
import torch.nn.functional as F
from torch import nn

import frozen_env as env


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(env.vocab_size(), 32)
        self.head = nn.Linear(32, env.vocab_size(), bias=False)

    def forward(self, tokens_BT):
        return self.head(self.embed(tokens_BT))


def build_model():
    return Bigram()


def train():
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    env.start()
    step = 0
    while env.progress() < 1.0:
        inputs_BT, targets_BT = env.next_batch(4)
        loss = F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        env.report(step, loss.item(), 1e-2)
    env.submit(model)


if __name__ == "__main__":
    train()
"""


def with_training(body: str) -> str:
    """The good candidate with another training function body (indented by us)."""
    head, _, _ = GOOD.partition("def train():")
    indented = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return f"{head}def train():\n{indented}\n\nif __name__ == '__main__':\n    train()\n"


def with_forward(expression: str) -> str:
    """The good candidate whose forward() returns another expression of `tokens_BT` and `good`."""
    return GOOD.replace(
        "        return self.head(self.embed(tokens_BT))",
        f"        good = self.head(self.embed(tokens_BT))\n        return {expression}",
    )
