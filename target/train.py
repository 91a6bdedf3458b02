"""Train a GPT for a fixed time: rotary attention, relu^2 MLP, Muon and AdamW, warmdown.

Legend: B rows, T positions, D width, H heads, K head size, V token ids.
"""

import torch
import torch.nn.functional as F
from torch import nn

import frozen_env as env

# --- model ---
DEPTH = 12  # transformer blocks
WIDTH = 768  # size of the residual stream
HEAD_DIM = 128  # size of one attention head
MLP_RATIO = 4  # hidden size of the MLP, in widths
ROPE_BASE = 10000.0  # longest rotary wavelength, in positions / 2 pi
EMBED_STD = 1.0  # spread of the token embedding at the start
HEAD_STD = 0.001  # spread of the output head at the start

# --- data ---
BATCH_ROWS = 40  # rows of text per step

# --- optimiser ---
EMBED_LR = 0.2  # peak learning rate of the token embedding, at width 768
HEAD_LR = 4e-3  # peak learning rate of the output head, at width 768
OTHER_LR = 1e-2  # peak learning rate of parameters that are none of these
ADAM_BETAS = (0.8, 0.95)  # memory of gradients and of their squares
MUON_LR = 2e-3  # peak learning rate of the matrices inside blocks
MUON_WD = 0.1  # weight decay of the matrices inside blocks
MUON_MOMENTUM = 0.95  # memory of gradients in Muon
MUON_STEPS = 5  # Newton-Schulz iterations

# --- schedule: WARMUP and WARMDOWN are shares of the time budget ---
REPORT_EVERY = 10  # steps between reports, each of which waits for the GPU
WARMUP = 0.01  # learning rates rise from zero
WARMDOWN = 0.5  # learning rates fall at the end
FINAL_LR = 0.0  # share of the peak that is left at the end
CLIP_NORM = 1.0  # largest norm of the whole gradient


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def rotary_tables(length, dim):
    """Return the cosine and sine of each position and frequency, [T, K / 2]."""
    frequencies_K = ROPE_BASE ** (-torch.arange(0, dim, 2) / dim)
    angles_TK = torch.outer(torch.arange(length), frequencies_K)
    return angles_TK.cos(), angles_TK.sin()


def rotate(x_BHTK, cos_TK, sin_TK):
    a, b = x_BHTK.chunk(2, dim=-1)
    return torch.cat([a * cos_TK + b * sin_TK, b * cos_TK - a * sin_TK], dim=-1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x_BTD, cos_TK, sin_TK):
        B, T, D = x_BTD.shape
        qkv_BTHK = self.qkv(x_BTD).view(B, T, 3 * D // HEAD_DIM, HEAD_DIM)
        q_BHTK, k_BHTK, v_BHTK = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)
        q_BHTK = rotate(q_BHTK, cos_TK, sin_TK)
        k_BHTK = rotate(k_BHTK, cos_TK, sin_TK)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, MLP_RATIO * WIDTH, bias=False)
        self.down = nn.Linear(MLP_RATIO * WIDTH, WIDTH, bias=False)

    def forward(self, x_BTD):
        return self.down(F.relu(self.up(x_BTD)).square())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.mlp = MLP()

    def forward(self, x_BTD, cos_TK, sin_TK):
        x_BTD = x_BTD + self.attention(norm(x_BTD), cos_TK, sin_TK)
        return x_BTD + self.mlp(norm(x_BTD))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(env.vocab_size(), WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, env.vocab_size(), bias=False)
        cos_TK, sin_TK = rotary_tables(env.seq_len(), HEAD_DIM)
        self.register_buffer("cos_TK", cos_TK, persistent=False)
        self.register_buffer("sin_TK", sin_TK, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Start as the identity: what each block adds to the stream is zero."""
        nn.init.normal_(self.embed.weight, std=EMBED_STD)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        for block in self.blocks:
            bound = (3 / WIDTH) ** 0.5
            nn.init.uniform_(block.attention.qkv.weight, -bound, bound)
            nn.init.uniform_(block.mlp.up.weight, -bound, bound)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.mlp.down.weight)

    def forward(self, tokens_BT):
        T = tokens_BT.size(1)
        cos_TK, sin_TK = self.cos_TK[:T], self.sin_TK[:T]
        x_BTD = norm(self.embed(tokens_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TK, sin_TK)
        return self.head(norm(x_BTD)).float()


def build_model():
    """Return an untrained model on the device: forward(tokens_BT) -> logits_BTV."""
    return GPT().to(env.device())


def orthogonalize(g_NRC):
    """Push the singular values of N matrices towards 1 by Newton-Schulz iterations."""
    tall = g_NRC.size(1) > g_NRC.size(2)
    x = g_NRC.mT if tall else g_NRC
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(MUON_STEPS):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. An update of lr 1 has a root mean square of 0.2, as AdamW's.

    Matrices of one shape are updated together. Source: Muon (Jordan), Moonlight (Liu).
    """

    def __init__(self, matrices, lr, weight_decay):
        shapes = {p.shape for p in matrices}
        groups = [{"params": [p for p in matrices if p.shape == s]} for s in sorted(shapes)]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            momentum = state.setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, 1 - MUON_MOMENTUM)
            update = orthogonalize(grads.lerp(momentum, MUON_MOMENTUM)).to(grads.dtype)
            scale = 0.2 * max(grads.shape[1:]) ** 0.5
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-group["lr"] * scale)


def build_optimizers(model):
    """Give matrices inside blocks to Muon, everything else to AdamW."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    special = [*matrices, model.embed.weight, model.head.weight]
    taken = {id(p) for p in special}
    others = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [model.embed.weight], "lr": EMBED_LR * (WIDTH / 768) ** -0.5},
        {"params": [model.head.weight], "lr": HEAD_LR * (WIDTH / 768) ** -0.5},
        {"params": others, "lr": OTHER_LR},
    ]
    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=1e-10, weight_decay=0.0, fused=True)
    muon = Muon(matrices, lr=MUON_LR, weight_decay=MUON_WD)
    for group in adamw.param_groups + muon.param_groups:
        group["peak_lr"] = group["lr"]
    return [muon, adamw]


def lr_share(progress):
    """Return the share of the peak learning rate at a share of the budget."""
    if progress < WARMUP:
        return progress / WARMUP
    left = min(1.0, (1.0 - progress) / WARMDOWN)
    return FINAL_LR + (1.0 - FINAL_LR) * left


def clip_norm(progress):
    """Return the largest gradient norm at a share of the budget."""
    return CLIP_NORM


def mixed_precision():
    """Compute products in bf16 where that is faster than fp32."""
    fast = env.device() == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(env.device(), torch.bfloat16, enabled=fast)


def loss_of(model, inputs_BT, targets_BT):
    """Return the mean loss in nats per token."""
    logits_BTV = model(inputs_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def learn(model, optimizers, inputs_BT, targets_BT, progress):
    """Take one step on a batch. Return its loss, which is not waited for."""
    with mixed_precision():
        loss = loss_of(model, inputs_BT, targets_BT)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm(progress))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_share(progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def preflight(model):
    """Take a step on random tokens and undo it: compile, and fail before the clock starts."""
    before = [p.detach().to("cpu", copy=True) for p in model.parameters()]
    learn(model, build_optimizers(model), *env.dummy_batch(BATCH_ROWS), 0.0).item()
    for p, value in zip(model.parameters(), before, strict=True):
        p.data.copy_(value)


def train(model):
    """Train until the budget is used. Losses are read a step late: the GPU never waits."""
    preflight(model)
    optimizers = build_optimizers(model)
    env.start()
    inputs_BT, targets_BT = env.next_batch(BATCH_ROWS)
    step, previous = 0, None
    while (progress := env.progress()) < 1.0:
        loss = learn(model, optimizers, inputs_BT, targets_BT, progress)
        inputs_BT, targets_BT = env.next_batch(BATCH_ROWS)
        if step > 0 and step % REPORT_EVERY == 0:
            env.report(step, previous.item(), MUON_LR * lr_share(progress))
        step, previous = step + 1, loss


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    if env.device() == "cuda":
        loss_of = torch.compile(loss_of)
        orthogonalize = torch.compile(orthogonalize, dynamic=False)
    model = build_model()
    train(model)
    env.submit(model)
