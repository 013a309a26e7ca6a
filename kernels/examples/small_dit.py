"""Run spot steps in your own DiT, without diffusers: ``python kernels/examples/small_dit.py``.

The model calls `self.attend(block, q, k, v)`, so replacing that one function patches it. A full
step fills the caches of keys and values; a spot step then computes only the rows that it is given.
"""

import torch
from spotedit_kernels import gathered_attention, qk_norm_rope
from torch import Tensor, nn

HEADS, DIM = 4, 32
TEXT, IMAGE = 7, 64  # numbers of tokens
ROWS = TEXT + 2 * IMAGE  # the joint sequence is [text, noise, condition]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = HEADS * DIM
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_scale = nn.Parameter(torch.rand(DIM))
        self.k_scale = nn.Parameter(torch.rand(DIM))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class SmallDiT(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        angle = torch.rand(ROWS, DIM // 2).repeat_interleave(2, -1)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.attend = self.plain_attention

    def plain_attention(self, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.norm_and_rotate(q, block.q_scale), self.norm_and_rotate(k, block.k_scale)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def norm_and_rotate(self, x: Tensor, scale: Tensor) -> Tensor:
        x = nn.functional.rms_norm(x, (DIM,), scale, 1e-6)
        rotated = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * self.cos[:, None] + rotated * self.sin[:, None]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            q, k, v = block.qkv(x).unflatten(-1, (3, HEADS, DIM)).unbind(2)  # [B, M, H, D]
            x = x + block.out(self.attend(block, q, k, v).flatten(2))
            x = x + block.mlp(x)
        return x


class SpotAttention:
    """Replaces `SmallDiT.attend`; `slots` are the rows of the step, and None means all rows."""

    def __init__(self, model: SmallDiT) -> None:
        self.model = model
        self.slots: Tensor | None = None
        self.caches: dict[Block, tuple[Tensor, Tensor]] = {}

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

    spot_attention = SpotAttention(model)
    model.attend = spot_attention
    full_step = model(x)  # fills the caches

    active = TEXT + torch.randperm(IMAGE)[:10]
    rows = torch.cat([torch.arange(TEXT), active])  # 17 of 135
    spot_attention.slots = rows
    spot_step = model(x[:, rows])

    for name, result, want in (
        ("full", full_step, expected),
        ("spot", spot_step, expected[:, rows]),
    ):
        error = (result - want).abs().max()
        print(f"{name} step: largest difference to the unpatched model {error:.1e}")
        assert error < 1e-4


if __name__ == "__main__":
    main()
