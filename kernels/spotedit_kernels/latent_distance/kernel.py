"""Latent distance in one pass: one program a block of tokens, which sums over their channels.

In names, ``p_`` is a pointer, ``m_`` a mask, ``b_`` a tile; ``x_b``, ``x_n``, ``x_c`` are strides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..primitives import launch_device, wrap_triton

BLOCK_N = 16  # tokens of a program
BLOCK_C = 64  # channels at a time; packed latents have 64 or 128
NUM_WARPS = 4


@triton.jit
def _latents(p_latents, token, channel, mask, stride_n, stride_c):
    """Load an fp32 tile [N, C] of one image's latents; it is 0 outside `mask`."""
    offset = token.to(tl.int64)[:, None] * stride_n + channel.to(tl.int64)[None, :] * stride_c
    return tl.load(p_latents + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n"])
def _latent_distance(
    p_x, p_y, p_velocity, p_sigma, p_out, sigma, n, channels,
    x_b, x_n, x_c, y_b, y_n, y_c, velocity_b, velocity_n, velocity_c,
    SIGMA: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write ``mean((x - sigma velocity - y)^2)`` over the channels of [B, n, channels] to [B, n].

    SIGMA: "none" without a velocity, "number" for the argument, "tensor" for the one at p_sigma.
    """
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    m_token = token < n
    if SIGMA == "tensor":
        sigma = tl.load(p_sigma).to(tl.float32)

    total = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for i in range(0, tl.cdiv(channels, BLOCK_C)):
        channel = i * BLOCK_C + tl.arange(0, BLOCK_C)  # [C]
        mask = m_token[:, None] & (channel < channels)[None, :]
        b_clean = _latents(p_x + batch * x_b, token, channel, mask, x_n, x_c)
        if SIGMA != "none":
            p_image = p_velocity + batch * velocity_b
            b_clean -= sigma * _latents(p_image, token, channel, mask, velocity_n, velocity_c)
        b_y = _latents(p_y + batch * y_b, token, channel, mask, y_n, y_c)
        difference = b_clean - b_y
        total += difference * difference
    tl.store(p_out + batch * n + token, tl.sum(total, 1) / channels, mask=m_token)


def _strides(latents: Tensor) -> tuple[int, int, int]:
    """Return the strides; that of a single image is 0, so that it does not change with N."""
    stride_b, stride_n, stride_c = latents.stride()
    return 0 if latents.shape[0] == 1 else stride_b, stride_n, stride_c


@triton_op("spotedit::latent_distance", mutates_args=())
def _op(
    x: Tensor, y: Tensor, velocity: Tensor | None, device_sigma: Tensor | None, sigma: float
) -> Tensor:
    batch, n, channels = x.shape
    out = x.new_empty(batch, n, dtype=torch.float32)
    if velocity is None:
        kind, velocity_strides = "none", (0, 0, 0)
    else:
        kind, velocity_strides = "number" if device_sigma is None else "tensor", _strides(velocity)
    with launch_device(x):
        wrap_triton(_latent_distance)[(triton.cdiv(n, BLOCK_N), batch)](
            x, y, velocity, device_sigma, out, sigma, n, channels,
            *_strides(x), *_strides(y), *velocity_strides,
            SIGMA=kind, BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


def latent_distance(x: Tensor, y: Tensor, velocity: Tensor | None, sigma: float | Tensor) -> Tensor:
    """Take the same arguments as the reference."""
    tensor = sigma if isinstance(sigma, Tensor) else None
    number = 0.0 if isinstance(sigma, Tensor) else sigma
    return torch.ops.spotedit.latent_distance(x, y, velocity, tensor, number)
