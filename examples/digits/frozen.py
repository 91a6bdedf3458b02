"""Frozen: the split of the handwritten digits that scikit-learn carries, and accuracy. No candidate ever sees this file."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

FILE = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
TRAINING = 1200  # images; the other 597 are held out


def split():
    """Return shuffled images [N, 64] in 0..1 and labels [N]; the first TRAINING are for training."""
    table = np.loadtxt(FILE, delimiter=",")
    table = table[np.random.default_rng(7).permutation(len(table))]
    return table[:, :-1] / 16, table[:, -1].astype(int)


def training_data(folder):
    images, labels = split()
    np.save(folder / "images.npy", images[:TRAINING])
    np.save(folder / "labels.npy", labels[:TRAINING])


def held_out(folder):
    images, _ = split()
    np.save(folder / "images.npy", images[TRAINING:])


def sample_predictions():
    return np.zeros(len(split()[1]) - TRAINING, dtype=int)


def score(predictions):
    labels = split()[1][TRAINING:]
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions must have shape {labels.shape}")  # no word of theirs: they know the inputs
    return float((predictions == labels).mean())
