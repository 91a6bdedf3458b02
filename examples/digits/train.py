"""Train the network of model.py on data/ until the budget is used, and leave model.npz."""

import os
import time

import numpy as np
from model import build, features, forward

BATCH = 32  # images per step
LEARNING_RATE = 0.02  # of plain gradient descent
WEIGHT_DECAY = 1e-4  # per step, in units of the learning rate
SPARE = 0.1  # share of the budget that is left for saving
MAX_STEPS = 10**9  # none: the time ends it
REPORT_EVERY = 200  # steps


def softmax(scores_NC):
    e_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return e_NC / e_NC.sum(axis=1, keepdims=True)


def gradients(model, x_NP, labels_N):
    """Return the mean cross-entropy in nats, and its gradient by each weight."""
    h_NH, scores_NC = forward(model, x_NP)
    p_NC = softmax(scores_NC)
    rows = np.arange(len(labels_N))
    loss = -np.log(p_NC[rows, labels_N] + 1e-12).mean()
    p_NC[rows, labels_N] -= 1.0
    p_NC /= len(labels_N)
    back_NH = (p_NC @ model["w2"].T) * (1.0 - h_NH**2)
    grads = {"w1": x_NP.T @ back_NH, "b1": back_NH.sum(0), "w2": h_NH.T @ p_NC, "b2": p_NC.sum(0)}
    return loss, grads


def main():
    spare_s = SPARE * float(os.environ["ARL_BUDGET_S"])
    last_s = float(os.environ["ARL_ENDS_AT"]) - spare_s  # on the clock of time.monotonic()
    rng = np.random.default_rng(int(os.environ["ARL_SEED"]))
    x_NP, labels_N = features(np.load("data/images.npy")), np.load("data/labels.npy")
    model = build(x_NP.shape[1], 10, rng)
    step = 0
    while time.monotonic() < last_s and step < MAX_STEPS:
        batch = rng.integers(len(labels_N), size=BATCH)
        loss, grads = gradients(model, x_NP[batch], labels_N[batch])
        for name in model:
            model[name] -= LEARNING_RATE * (grads[name] + WEIGHT_DECAY * model[name])
        if step % REPORT_EVERY == 0:
            print(f"step {step} loss {loss:.4f}")
        step += 1
    np.savez("model.npz", **model)


if __name__ == "__main__":
    main()
