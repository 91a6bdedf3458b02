"""What a model is: its parameters, and the floating-point operations of a forward pass. Runs in a scoring worker.

Matrix products and attention are counted as they are executed, attention over the whole square: the convention of
6 · parameters + 12 · layers · width · T operations per trained token (PaLM, appendix B; nanoGPT's estimate_mfu), but
right for any model that an edit builds. Nothing here is trusted: the figures are for people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def facts(model: torch.nn.Module, seq_len: int, device: str) -> dict[str, float]:
    """Return `parameters` and `forward_flops_per_token`, without what cannot be counted; never raises."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    try:
        known = {"parameters": float(sum(parameter.numel() for parameter in model.parameters()))}
        tokens_BT = torch.zeros(1, seq_len, dtype=torch.int64, device=device)
        # Of attention kernels only some are known to the counter; the plain one is made of products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(tokens_BT)
        return known | {"forward_flops_per_token": counter.get_total_flops() / seq_len}
    except Exception:  # the model's own business: answering held-out inputs shows whether it works
        return {}
