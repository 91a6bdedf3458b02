"""Edits of target/train.py that a researcher would try, as templates: what the warm start is made of.

A lever is one or more blocks; `{name}` in a replacement is drawn from OPTIONS, so that one lever gives many edits. The
warm start claims nothing about which of them is good beyond a sane range. A lever whose SEARCH is not in the present
state of the file (an earlier edit changed it) is skipped, so the list may be longer than any one file needs.
"""

from __future__ import annotations

from dataclasses import dataclass

OPTIONS: dict[str, tuple[str, ...]] = {
    "gain": ("0.5", "0.6", "0.7", "0.8", "0.9", "1.1", "1.2", "1.5"),
    "small": ("0.01", "0.02", "0.03", "0.05", "0.1", "0.15", "0.2"),
    "tiny": ("1e-5", "3e-5", "1e-4", "2e-4", "5e-4", "1e-3"),
    "std": ("0.002", "0.005", "0.01", "0.02", "0.03"),
    "cap": ("8.0", "10.0", "15.0", "20.0", "30.0", "50.0"),
    "power": ("0.5", "0.75", "1.2", "1.5", "2", "3"),
    "share": ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"),
    "sharp": ("6.0", "8.0", "10.0", "12.0", "16.0"),
    "eps": ("1e-6", "1e-5", "1e-8"),
    "shape": ("left ** 2", "left * left * (3 - 2 * left)", "left ** 0.5", "1 - (1 - left) ** 2", "left ** 1.5"),
    "act": (
        "F.gelu({up})",
        "F.silu({up})",
        "F.relu({up}).pow({power})",
        "F.leaky_relu({up}, {small}).square()",
        "F.elu({up}).square()",
        "F.mish({up})",
        "F.softplus({up})",
        "{up} * torch.sigmoid({gain} * {up})",
        "F.relu({up} - {small}).square()",
        "{gain} * F.relu({up}).square()",
        "norm(F.relu({up}).square())",
        "torch.tanh({up})",
    ),
    "up": ("self.up(x_BTD)",),
}


@dataclass(frozen=True)
class Lever:
    """A named kind of edit; `blocks` are (SEARCH, REPLACE) pairs without their last newline."""

    kind: str
    blocks: tuple[tuple[str, str], ...]


def _one(kind: str, search: str, *replacements: str) -> list[Lever]:
    return [Lever(kind, ((search, replacement),)) for replacement in replacements]


_MLP = "        return self.down(F.relu(self.up(x_BTD)).square())"
_UP = "        self.up = nn.Linear(WIDTH, MLP_RATIO * WIDTH, bias=False)"
_DOWN = "        self.down = nn.Linear(MLP_RATIO * WIDTH, WIDTH, bias=False)"
_Q = "        q_BHTK = rotate(q_BHTK, cos_TK, sin_TK)"
_K = "        k_BHTK = rotate(k_BHTK, cos_TK, sin_TK)"
_CHUNK = "        q_BHTK, k_BHTK, v_BHTK = qkv_BTHK.transpose(1, 2).chunk(3, dim=1)"
_SDPA = "        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)"
_OUT = "        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))"
_RES_A = "        x_BTD = x_BTD + self.attention(norm(x_BTD), cos_TK, sin_TK)"
_RES_M = "        return x_BTD + self.mlp(norm(x_BTD))"
_EMBED = "        x_BTD = norm(self.embed(tokens_BT))"
_FOR = "        for block in self.blocks:"
_STEP = "            x_BTD = block(x_BTD, cos_TK, sin_TK)"
_HEAD = "        return self.head(norm(x_BTD)).float()"
_LEFT = "    left = min(1.0, (1.0 - progress) / WARMDOWN)"
_LR = "    return FINAL_LR + (1.0 - FINAL_LR) * left"
_ADAM = "    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=1e-10, weight_decay=0.0, fused=True)"
_CE = "    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())"
_BATCH = "        inputs_BT, targets_BT = env.next_batch(BATCH_ROWS)"
_SCALE = "            scale = 0.2 * max(grads.shape[1:]) ** 0.5"
_NS = "        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x"
_DECAY = '            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])'
_SET_LR = '            group["lr"] = group["peak_lr"] * lr_share(progress)'
_FREQ = "    frequencies_K = ROPE_BASE ** (-torch.arange(0, dim, 2) / dim)"

LEVERS: tuple[Lever, ...] = (
    *_one("activation", _MLP, "        return self.down({act})", "        return self.down({act})"),
    *_one(
        "activation",
        _MLP,
        "        return self.down(F.dropout(F.relu(self.up(x_BTD)).square(), {small}, self.training))",
    ),
    Lever(
        "gated mlp",
        (
            (_DOWN, "        self.down = nn.Linear(MLP_RATIO * WIDTH // 2, WIDTH, bias=False)"),
            (_MLP, "        a, b = self.up(x_BTD).chunk(2, dim=-1)\n        return self.down(F.silu(a) * b)"),
        ),
    ),
    Lever(
        "gated mlp",
        (
            (_DOWN, "        self.down = nn.Linear(MLP_RATIO * WIDTH // 2, WIDTH, bias=False)"),
            (_MLP, "        a, b = self.up(x_BTD).chunk(2, dim=-1)\n        return self.down(F.relu(a).square() * b)"),
        ),
    ),
    *_one("bias", _UP, "        self.up = nn.Linear(WIDTH, MLP_RATIO * WIDTH)"),
    *_one("bias", _DOWN, "        self.down = nn.Linear(MLP_RATIO * WIDTH, WIDTH)"),
    *_one("qk norm", f"{_Q}\n{_K}", f"{_Q}\n{_K}\n        q_BHTK, k_BHTK = norm(q_BHTK), norm(k_BHTK)"),
    *_one("qk norm", _CHUNK, f"{_CHUNK}\n        q_BHTK, k_BHTK = norm(q_BHTK), norm(k_BHTK)"),
    *_one(
        "qk norm",
        f"{_Q}\n{_K}",
        "        q_BHTK = norm(rotate(q_BHTK, cos_TK, sin_TK))\n        k_BHTK = norm(rotate(k_BHTK, cos_TK, sin_TK))",
    ),
    *_one("qk norm", _Q, "        q_BHTK = {gain} * norm(rotate(q_BHTK, cos_TK, sin_TK))"),
    *_one("qk norm", _K, "        k_BHTK = {gain} * norm(rotate(k_BHTK, cos_TK, sin_TK))"),
    *_one("qk norm", _Q, "        q_BHTK = {sharp} * F.normalize(rotate(q_BHTK, cos_TK, sin_TK), dim=-1)"),
    *_one(
        "attention scale",
        _SDPA,
        "        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale={small})",
    ),
    *_one(
        "attention value",
        _SDPA,
        "        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, norm(v_BHTK), is_causal=True)",
    ),
    *_one("attention value", _SDPA, f"{_SDPA}\n        y_BHTK = y_BHTK + {{small}} * v_BHTK"),
    *_one("attention output", _OUT, "        return self.out(norm(y_BHTK.transpose(1, 2).reshape(B, T, D)))"),
    *_one("attention output", _OUT, "        return {gain} * self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))"),
    *_one("residual", _RES_A, "        x_BTD = x_BTD + {gain} * self.attention(norm(x_BTD), cos_TK, sin_TK)"),
    *_one("residual", _RES_A, "        x_BTD = x_BTD + norm(self.attention(norm(x_BTD), cos_TK, sin_TK))"),
    *_one("residual", _RES_M, "        return x_BTD + {gain} * self.mlp(norm(x_BTD))"),
    *_one("residual", _RES_M, "        return x_BTD + norm(self.mlp(norm(x_BTD)))"),
    *_one("residual", _RES_M, "        return {gain} * x_BTD + self.mlp(norm(x_BTD))"),
    *_one(
        "parallel block",
        f"{_RES_A}\n{_RES_M}",
        "        h_BTD = norm(x_BTD)\n        return x_BTD + self.attention(h_BTD, cos_TK, sin_TK) + self.mlp(h_BTD)",
    ),
    *_one(
        "block order",
        f"{_RES_A}\n{_RES_M}",
        "        x_BTD = x_BTD + self.mlp(norm(x_BTD))\n        return x_BTD + self.attention(norm(x_BTD), cos_TK, sin_TK)",
    ),
    *_one(
        "embedding",
        _EMBED,
        "        x_BTD = self.embed(tokens_BT)",
        "        x_BTD = {gain} * norm(self.embed(tokens_BT))",
    ),
    *_one("token shift", _EMBED, f"{_EMBED}\n        x_BTD = x_BTD + {{small}} * F.pad(x_BTD, (0, 0, 1, -1))"),
    *_one(
        "skip to input",
        f"{_EMBED}\n{_FOR}\n{_STEP}",
        f"{_EMBED}\n        x0_BTD = x_BTD\n{_FOR}\n            x_BTD = block(x_BTD, cos_TK, sin_TK) + {{small}} * x0_BTD",
    ),
    *_one("skip to input", _STEP, "            x_BTD = block(x_BTD, cos_TK, sin_TK) + {small} * self.embed(tokens_BT)"),
    *_one(
        "residual",
        _STEP,
        "            x_BTD = norm(block(x_BTD, cos_TK, sin_TK))",
        "            x_BTD = {gain} * block(x_BTD, cos_TK, sin_TK)",
    ),
    *_one(
        "soft cap",
        _HEAD,
        "        logits_BTV = self.head(norm(x_BTD)).float()\n        return {cap} * torch.tanh(logits_BTV / {cap})",
    ),
    *_one(
        "head",
        _HEAD,
        "        return {gain} * self.head(norm(x_BTD)).float()",
        "        return self.head(x_BTD).float()",
    ),
    *_one(
        "norm",
        "    return F.rms_norm(x, (x.size(-1),))",
        "    return F.layer_norm(x, (x.size(-1),))",
        "    return F.rms_norm(x, (x.size(-1),), eps={eps})",
        "    return F.normalize(x, dim=-1) * x.size(-1) ** 0.5",
    ),
    *_one(
        "rotary",
        _FREQ,
        f"{_FREQ}\n    frequencies_K[dim // 4 :] = 0",
        "    frequencies_K = {share} * ROPE_BASE ** (-torch.arange(0, dim, 2) / dim)",
    ),
    *_one(
        "schedule",
        _LR,
        "    return FINAL_LR + (1.0 - FINAL_LR) * ({shape})",
        "    return FINAL_LR + (1.0 - FINAL_LR) * left ** {power}",
    ),
    *_one(
        "schedule",
        _LEFT,
        "    left = 1.0 - progress",
        "    left = min(1.0, (1.0 - progress) / {share})",
        "    left = 1.0 if progress < {share} else (1.0 - progress) / (1.0 - {share})",
    ),
    *_one(
        "warmup",
        "        return progress / WARMUP",
        "        return (progress / WARMUP) ** {power}",
        "        return {share} + (1.0 - {share}) * progress / WARMUP",
    ),
    *_one(
        "schedule",
        "    return CLIP_NORM",
        "    return 0.5 + 0.5 * progress",
        "    return CLIP_NORM * ({share} + progress)",
        "    return CLIP_NORM if progress < {share} else {gain} * CLIP_NORM",
        "    return {gain} * CLIP_NORM * (1.0 - {share} * progress)",
    ),
    *_one("decay", _DECAY, '            torch._foreach_mul_(params, 1 - {gain} * group["lr"] * group["weight_decay"])'),
    *_one("decay schedule", _SET_LR, f'{_SET_LR}\n            group["weight_decay"] = {{small}} * (1.0 - progress)'),
    *_one(
        "schedule",
        _SET_LR,
        '            group["lr"] = group["peak_lr"] * max({small}, lr_share(progress))',
        '            group["lr"] = group["peak_lr"] * lr_share(progress) ** {power}',
    ),
    *_one(
        "muon",
        _SCALE,
        "            scale = {share} * max(grads.shape[1:]) ** 0.5",
        "            scale = max(1, grads.shape[1] / grads.shape[2]) ** 0.5",
    ),
    *_one(
        "muon",
        _NS,
        "        x = 2.0 * x + (-1.5 * gram + 0.5 * gram @ gram) @ x",
        "        x = 3.0 * x + (-3.2 * gram + 1.2 * gram @ gram) @ x",
        "        x = 1.5 * x - 0.5 * gram @ x",
    ),
    *_one(
        "muon",
        "            update = orthogonalize(grads.lerp(momentum, MUON_MOMENTUM)).to(grads.dtype)",
        "            update = orthogonalize(momentum).to(grads.dtype)",
        "            update = orthogonalize(grads.lerp(momentum, {share})).to(grads.dtype)",
    ),
    *_one(
        "adam",
        _ADAM,
        "    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, eps={eps}, weight_decay=0.0, fused=True)",
        "    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=1e-10, weight_decay={small}, fused=True)",
    ),
    *_one(
        "muon",
        "    muon = Muon(matrices, lr=MUON_LR, weight_decay=MUON_WD)",
        "    muon = Muon(matrices, lr={gain} * MUON_LR, weight_decay={small})",
    ),
    *_one(
        "loss",
        _CE,
        "    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), label_smoothing={small})",
    ),
    *_one(
        "z-loss",
        _CE,
        f"    z = logits_BTV.float().logsumexp(-1).square().mean()\n{_CE} + {{tiny}} * z",
    ),
    *_one(
        "growing batch",
        _BATCH,
        "        inputs_BT, targets_BT = env.next_batch(BATCH_ROWS if progress < {share} else 2 * BATCH_ROWS)",
        "        inputs_BT, targets_BT = env.next_batch(BATCH_ROWS // 2 if progress < {share} else BATCH_ROWS)",
    ),
    *_one(
        "init",
        "            nn.init.zeros_(block.attention.out.weight)",
        "            nn.init.normal_(block.attention.out.weight, std={std})",
        "            nn.init.uniform_(block.attention.out.weight, -{small} * bound, {small} * bound)",
    ),
    *_one(
        "init",
        "            nn.init.zeros_(block.mlp.down.weight)",
        "            nn.init.normal_(block.mlp.down.weight, std={std})",
        "            nn.init.uniform_(block.mlp.down.weight, -{small} * bound, {small} * bound)",
    ),
    *_one(
        "init",
        "            bound = (3 / WIDTH) ** 0.5",
        "            bound = {gain} * (3 / WIDTH) ** 0.5",
        "            bound = WIDTH**-0.5",
    ),
    *_one(
        "init",
        "            nn.init.uniform_(block.mlp.up.weight, -bound, bound)",
        "            nn.init.normal_(block.mlp.up.weight, std={std})",
        "            nn.init.orthogonal_(block.mlp.up.weight)",
        "            nn.init.uniform_(block.mlp.up.weight, -{gain} * bound, {gain} * bound)",
    ),
    *_one(
        "init",
        "            nn.init.uniform_(block.attention.qkv.weight, -bound, bound)",
        "            nn.init.normal_(block.attention.qkv.weight, std={std})",
        "            nn.init.uniform_(block.attention.qkv.weight, -{gain} * bound, {gain} * bound)",
    ),
    *_one(
        "init",
        "        nn.init.normal_(self.head.weight, std=HEAD_STD)",
        "        nn.init.zeros_(self.head.weight)",
        "        nn.init.normal_(self.head.weight, std={gain} * WIDTH**-0.5)",
    ),
    *_one(
        "refactor",
        "    return torch.cat([a * cos_TK + b * sin_TK, b * cos_TK - a * sin_TK], dim=-1)",
        "    return torch.cat((a * cos_TK + b * sin_TK, b * cos_TK - a * sin_TK), -1)",
    ),
    *_one("refactor", _RES_A, "        x_BTD = torch.add(x_BTD, self.attention(norm(x_BTD), cos_TK, sin_TK))"),
)
