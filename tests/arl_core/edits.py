"""A small target, and one edit of it, for tests of edits."""

from __future__ import annotations

SOURCE = '''"""A small target."""

import torch
from torch import nn

# --- optimiser ---
MUON_LR = 2e-3  # peak learning rate, é
BETAS = (0.8, 0.95)
BATCH_TOKENS: int = 2**16  # per step
WIDTH = 4 * BETAS[0]
NAME = "muon"


class Attention(nn.Module):
    def forward(self, x):
        q = self.q(x)
        return q


def norm(x):
    return x


def build_model():
    return nn.Linear(1, 1)


if __name__ == "__main__":
    model = build_model()
    model.train()
'''
OLD_LR, NEW_LR = "MUON_LR = 2e-3  # peak learning rate, é", "MUON_LR = 2.8e-3  # peak learning rate, é"
