"""Frozen: the texts that scikit-learn carries about its data sets, and bits per character.

A held-out context does not hold its answer, nor that of another context: they do not overlap, and only the one character
that follows each is asked for. With whole texts as inputs a candidate could read the answers off its inputs.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

FOLDER = Path(find_spec("sklearn").origin).parent / "datasets" / "descr"
CONTEXT = 64  # characters
HELD_OUT = 200  # contexts


def text():
    """Return the ASCII codes of all texts, those of the last files at the end."""
    return np.concatenate(
        [np.frombuffer(path.read_bytes(), dtype=np.uint8) & 127 for path in sorted(FOLDER.glob("*.rst"))]
    )


def windows():
    """Return HELD_OUT rows of CONTEXT + 1 characters from the end of the text."""
    size = HELD_OUT * (CONTEXT + 1)
    return text()[-size:].reshape(HELD_OUT, CONTEXT + 1)


def training_data(folder):
    (folder / "train.bin").write_bytes(text()[: -HELD_OUT * (CONTEXT + 1)].tobytes())


def held_out(folder):
    np.save(folder / "contexts.npy", windows()[:, :-1])


def sample_predictions():
    return np.zeros((HELD_OUT, 128), dtype=np.float32)


def score(logits):
    answers = windows()[:, -1]
    if logits.shape != (HELD_OUT, 128):
        raise ValueError(f"logits must have shape {(HELD_OUT, 128)}")  # nothing of theirs: they know the inputs
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    nats = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(HELD_OUT), answers]
    return float(nats.mean() / np.log(2))
