"""Name the held-out digits in inputs/ with the trained model. Given: a candidate cannot change it."""

import numpy as np
from model import features, forward

model = dict(np.load("model.npz"))
_, scores = forward(model, features(np.load("inputs/images.npy")))
np.save("predictions.npy", scores.argmax(axis=1))
