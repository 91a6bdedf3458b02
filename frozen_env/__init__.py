"""The frozen environment: what must never move while a policy edits target/train.py.

A candidate imports this package as its only link to the run that it is part of:

    import frozen_env as env
    env.start()                                   # the clock starts; from here on training text is served
    while env.progress() < 1.0:
        inputs_BT, targets_BT = env.next_batch(32)
        ...
        env.report(step, loss, lr)
    env.submit(model)
"""

from frozen_env.runtime.client import (
    budget_s,
    device,
    dummy_batch,
    next_batch,
    progress,
    report,
    seed,
    seq_len,
    start,
    submit,
    vocab_size,
)

__all__ = [
    "budget_s",
    "device",
    "dummy_batch",
    "next_batch",
    "progress",
    "report",
    "seed",
    "seq_len",
    "start",
    "submit",
    "vocab_size",
]
