"""Spot steps in a DiT of one's own, without diffusers: ``python kernels/examples/small_dit.py``.

The model calls `self.attend(block, q, k, v)`; replacing that one function patches it. A full step
fills the caches of keys and values; a spot step then computes some rows only.
"""

import torch
from spotedit_kernels import gathered_attention, qk_norm_rope
from torch import Tensor, nn

HEADS, DIM, TEXT, IMAGE = 4, 32, 7, 64  # the rows are [text, noise, condition]
ROWS = TEXT + 2 * IMAGE


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = HEADS * DIM
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_scale, self.k_scale = (nn.Parameter(torch.rand(DIM)) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class SmallDiT(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        angle = torch.rand(ROWS, DIM // 2).repeat_interleave(2, -1)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.attend = self.plain_attention

    def plain_attention(self, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def prepare(x: Tensor, scale: Tensor) -> Tensor:
            x = nn.functional.rms_norm(x, (DIM,), scale, 1e-6)
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
            return x * self.cos[:, None] + turned * self.sin[:, None]

        q, k = prepare(q, block.q_scale), prepare(k, block.k_scale)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v = block.qkv(x).unflatten(-1, (3, HEADS, DIM)).unbind(2)  # [B, M, H, D]
            x = x + block.out(self.attend(block, q, k, v).flatten(2))
            x = x + block.mlp(x)
        return x


class SpotAttention:
    """In place of `SmallDiT.attend`: `slots` are the rows of the step, None = all of them."""

    def __init__(self, model: SmallDiT) -> None:
        self.model, self.slots, self.caches = model, None, {}

    def __call__(self, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if block not in self.caches:
            self.caches[block] = torch.empty_like(k), torch.empty_like(v)
        keys, values = self.caches[block]
        q = qk_norm_rope(
            q, k, v, keys, values, self.slots, self.model.cos, self.model.sin,
            text_len=TEXT, q_weight=block.q_scale, k_weight=block.k_scale,
            text_q_weight=None, text_k_weight=None, eps=1e-6, interleaved=True,
        )  # fmt: skip
        return gathered_attention(q, keys, values)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model, x = SmallDiT(), torch.randn(1, ROWS, HEADS * DIM)
    expected = model(x)
    model.attend = spot = SpotAttention(model)
    full = model(x)  # fills the caches
    active = TEXT + torch.randperm(IMAGE)[:10]
    spot.slots = torch.cat([torch.arange(TEXT), active])
    part = model(x[:, spot.slots])  # 17 of 135 rows
    for name, error in (("full", full - expected), ("spot", part - expected[:, spot.slots])):
        print(f"{name} step: largest difference to the unpatched model {error.abs().max():.1e}")
        assert error.abs().max() < 1e-4


if __name__ == "__main__":
    main()
