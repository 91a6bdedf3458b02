"""The untrusted side of scoring: answer held-out inputs with the submitted model's logits. Runs confined.

Legend: B rows, T positions, V token ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from mmap import mmap

import numpy as np

from frozen_env.runtime import client, flops
from frozen_env.runtime.channel import Channel, Closed


def get_ready(channel: Channel) -> None:
    """Import what answering takes, then wait for the word to load: importing is not the model's time. Runs before its code."""
    import safetensors.torch  # noqa: F401

    channel.send({"warm": True})
    channel.receive()


def answer(channel: Channel, build_model: Callable[[], object], weights: str, inputs: mmap, outputs: mmap) -> None:
    """Load the weights into build_model() and answer {"shape": [B, T]} messages until the channel closes.

    Tokens come as int64 [B, T] in `inputs`; logits go as float32 [B, T, V] into `outputs`.
    """
    import torch
    from safetensors.torch import load_model

    model = build_model()
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"build_model() returned {type(model).__name__}, not a torch.nn.Module")
    torch.set_grad_enabled(False)  # not for those who mean to learn, who switch them on again: see effort.py
    load_model(model, weights)
    device = client.device()
    model.to(device).eval()
    _pin(outputs, device)
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    channel.send({"ready": True, "device_name": name[:80], **flops.facts(model, client.seq_len(), device)})
    with torch.inference_mode():
        while True:
            try:
                rows, length = channel.receive()["shape"]
            except Closed:
                return
            tokens = np.frombuffer(inputs, dtype=np.int64, count=rows * length).reshape(rows, length)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):
                logits_BTV = model(torch.tensor(tokens, device=device))
            if not isinstance(logits_BTV, torch.Tensor):
                channel.send({"shape": None})  # is refused, as any other shape than that of logits
                continue
            if 4 * logits_BTV.numel() <= len(outputs):
                room = torch.frombuffer(outputs, dtype=torch.float32, count=logits_BTV.numel())
                room.view(logits_BTV.shape).copy_(logits_BTV)  # from the GPU straight into shared memory
            channel.send({"shape": list(logits_BTV.shape)})


def _pin(memory: mmap, device: str) -> None:
    """Let the GPU write into shared memory by itself; without it, copies from there are slower but right."""
    import torch

    if device == "cuda":
        address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        with contextlib.suppress(Exception):
            refused = torch.cuda.cudart().cudaHostRegister(address, len(memory), 0)  # type: ignore[no-untyped-call]
            if int(refused):  # it raises nothing; the error waits for the next kernel, which this is
                torch.zeros(1, device=device).add_(1)
