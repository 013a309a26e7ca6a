"""Latent distance in one pass; a program takes a block of tokens and sums over their channels.

Names in the kernel: ``p_`` pointer, ``o_`` offset, ``m_`` mask, ``b_`` tile; ``stride_xn`` is the
stride of x along n. Axes: b batch, n tokens, c channels. Tiles have the shape [N, C], with
N = BLOCK_N tokens and C = BLOCK_C channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import launch_device, wrap_triton

BLOCK_N = 16  # number of tokens that a program takes
BLOCK_C = 64  # number of channels that it reads at a time; packed latents have 64 or 128
NUM_WARPS = 4


@triton.jit
def _load_latents(p_latents, token, channel, m_tile, stride_n, stride_c):
    """Load an fp32 tile [N, C] of one image's latents; it is 0 outside the mask."""
    o_tile = token.to(tl.int64)[:, None] * stride_n + channel.to(tl.int64)[None, :] * stride_c
    return tl.load(p_latents + o_tile, mask=m_tile, other=0.0).to(tl.float32)


# The number of tokens varies with the picture; specialised on, it could compile a new kernel.
@triton.jit(do_not_specialize=["num_tokens"])
def _latent_distance(
    p_x, p_y, p_velocity, p_sigma, p_out, sigma, num_tokens, num_channels,
    stride_xb, stride_xn, stride_xc, stride_yb, stride_yn, stride_yc,
    stride_velocity_b, stride_velocity_n, stride_velocity_c,
    SIGMA: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write ``mean((x - sigma velocity - y)^2)`` over the channels to p_out [B, num_tokens].

    SIGMA says where sigma comes from: "number", the argument; "tensor", the device scalar at
    p_sigma; "none", there is no velocity.
    """
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    m_token = token < num_tokens
    if SIGMA == "tensor":
        sigma = tl.load(p_sigma).to(tl.float32)

    b_total = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    for i in range(0, tl.cdiv(num_channels, BLOCK_C)):
        channel = i * BLOCK_C + tl.arange(0, BLOCK_C)  # [C]
        m_tile = m_token[:, None] & (channel < num_channels)[None, :]
        p_image = p_x + batch * stride_xb
        b_clean = _load_latents(p_image, token, channel, m_tile, stride_xn, stride_xc)
        if SIGMA != "none":
            p_image = p_velocity + batch * stride_velocity_b
            b_velocity = _load_latents(
                p_image, token, channel, m_tile, stride_velocity_n, stride_velocity_c
            )
            b_clean -= sigma * b_velocity
        p_image = p_y + batch * stride_yb
        b_y = _load_latents(p_image, token, channel, m_tile, stride_yn, stride_yc)
        b_difference = b_clean - b_y
        b_total += b_difference * b_difference
    p_out += batch * num_tokens
    tl.store(p_out + token, tl.sum(b_total, 1) / num_channels, mask=m_token)


def _strides(latents: Tensor) -> tuple[int, int, int]:
    """Return the strides of latents, with 0 along a batch of 1.

    The batch stride of a single image varies with N, and a new value could compile a new kernel.
    """
    stride_b, stride_n, stride_c = latents.stride()
    return 0 if latents.shape[0] == 1 else stride_b, stride_n, stride_c


@triton_op(add_op_namespace_prefix("latent_distance"), mutates_args=())
def _op(
    x: Tensor, y: Tensor, velocity: Tensor | None, device_sigma: Tensor | None, sigma: float
) -> Tensor:
    """Launch the kernel; `device_sigma` takes precedence over `sigma`."""
    batch, num_tokens, num_channels = x.shape
    out = x.new_empty(batch, num_tokens, dtype=torch.float32)
    kind, velocity_strides = "none", (0, 0, 0)
    if velocity is not None:
        kind = "number" if device_sigma is None else "tensor"
        velocity_strides = _strides(velocity)
    with launch_device(x):
        wrap_triton(_latent_distance)[(triton.cdiv(num_tokens, BLOCK_N), batch)](
            x, y, velocity, device_sigma, out, sigma, num_tokens, num_channels,
            *_strides(x), *_strides(y), *velocity_strides,
            SIGMA=kind, BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


def latent_distance(x: Tensor, y: Tensor, velocity: Tensor | None, sigma: float | Tensor) -> Tensor:
    """Follow the same contract as the reference."""
    if isinstance(sigma, Tensor):
        device_sigma, number = sigma, 0.0
    else:
        device_sigma, number = None, sigma
    return ops.latent_distance(x, y, velocity, device_sigma, number)
