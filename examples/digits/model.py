"""The network: pixels to ten scores. Legend: N images, P pixels, H hidden units, C classes."""

import numpy as np

HIDDEN = 16  # hidden units
INIT_SCALE = 0.1  # spread of the weights at the start


def features(images_NP):
    """What the network sees of an image."""
    return images_NP - 0.3


def build(pixels, classes, rng):
    return {
        "w1": rng.normal(0.0, INIT_SCALE, (pixels, HIDDEN)),
        "b1": np.zeros(HIDDEN),
        "w2": rng.normal(0.0, INIT_SCALE, (HIDDEN, classes)),
        "b2": np.zeros(classes),
    }


def forward(model, x_NP):
    """Return hidden activations [N, H] and scores [N, C]."""
    h_NH = np.tanh(x_NP @ model["w1"] + model["b1"])
    return h_NH, h_NH @ model["w2"] + model["b2"]
