"""Token distance in two kernels a layer: distances at the map's positions, then tokens of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..primitives import launch_device, wrap_triton

BLOCK_P = 64  # positions, or tokens, of a program
BLOCK_C = 32
NUM_WARPS = 4
POOL_BLOCK = 128
POOL_WARPS = 4


@triton.jit
def _features(p_features, batch, position, channel, n, channels, s_b, s_c, s_p):
    """fp32 tile [P, C] of a map [B, C, n] with the strides s_b, s_c, s_p; 0 outside it."""
    offset = batch * s_b + position.to(tl.int64)[:, None] * s_p
    offset += channel.to(tl.int64)[None, :] * s_c
    mask = (position < n)[:, None] & (channel < channels)[None, :]
    return tl.load(p_features + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _inverse_length(squares):
    """1 / |vector| [P] of squares [P, C]; a zero vector stays zero when multiplied by it."""
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 1)), 1e-12)


# n is specialised, unlike other sizes: without its divisibility by 16 no masked load is wide. The
# strides of a dense map have the same divisibility, so this adds no further variant.
@triton.jit
def _distance(
    p_x, p_y, p_map, n, channels, x_b, x_c, x_p, y_b, y_c, y_p,
    UNIT_Y: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``|x/|x| - y/|y||^2`` of maps [B, C, n] to [B, n]; the difference is taken before it is
    squared, so that close vectors keep their relative accuracy."""
    batch = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P]
    blocks = tl.cdiv(channels, BLOCK_C)

    xx = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    yy = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for i in range(0, blocks):
        c = i * BLOCK_C + tl.arange(0, BLOCK_C)
        b_x = _features(p_x, batch, position, c, n, channels, x_b, x_c, x_p)
        xx += b_x * b_x
        if not UNIT_Y:
            b_y = _features(p_y, batch, position, c, n, channels, y_b, y_c, y_p)
            yy += b_y * b_y
    per_x = _inverse_length(xx)[:, None]
    if not UNIT_Y:
        per_y = _inverse_length(yy)[:, None]

    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for i in range(0, blocks):
        c = (blocks - 1 - i) * BLOCK_C + tl.arange(0, BLOCK_C)  # backwards: what was read last
        b_x = _features(p_x, batch, position, c, n, channels, x_b, x_c, x_p)
        b_y = _features(p_y, batch, position, c, n, channels, y_b, y_c, y_p)
        if not UNIT_Y:
            b_y *= per_y
        step = b_x * per_x - b_y
        total += step * step
    tl.store(p_map + batch * n + position, tl.sum(total, 1), mask=position < n)


@triton.jit
def _taps(at, size_in, size_out):
    """Of output cells `at`: the two input cells and the share of the second, in exact integers.

    The second cell is the first where its share is 0, so what it holds cannot matter.
    """
    numerator = tl.maximum((2 * at + 1) * size_in - size_out, 0)  # (at + 1/2) in/out - 1/2
    low = numerator // (2 * size_out)
    rest = numerator - low * (2 * size_out)
    high = tl.where((rest > 0) & (low + 1 < size_in), low + 1, low)
    return low, high, rest.to(tl.float32) / (2 * size_out).to(tl.float32)


@triton.jit(do_not_specialize=["add", "height", "width", "rows", "cols"])
def _pool(
    p_map, p_out, share, add, height, width, rows, cols,
    PATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`share` times the map [B, H, W], resized to (rows*PATCH, cols*PATCH) and averaged over
    PATCH x PATCH cells, to [B, rows*cols]; on top of what is there if `add` is not 0."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [X]
    m_token = token < rows * cols
    row, col = token // cols, token % cols
    p_map += batch * height * width

    total = tl.zeros([BLOCK], dtype=tl.float32)
    for dy in range(PATCH):
        top, bottom, down = _taps(row * PATCH + dy, height, rows * PATCH)
        for dx in range(PATCH):
            left, right, across = _taps(col * PATCH + dx, width, cols * PATCH)
            b_tl = tl.load(p_map + top * width + left, mask=m_token, other=0.0)
            b_tr = tl.load(p_map + top * width + right, mask=m_token, other=0.0)
            b_bl = tl.load(p_map + bottom * width + left, mask=m_token, other=0.0)
            b_br = tl.load(p_map + bottom * width + right, mask=m_token, other=0.0)
            upper = (1.0 - across) * b_tl + across * b_tr
            lower = (1.0 - across) * b_bl + across * b_br
            total += (1.0 - down) * upper + down * lower

    o_out = batch * rows * cols + token
    before = tl.load(p_out + o_out, mask=m_token & (add != 0), other=0.0)
    tl.store(p_out + o_out, before + share * (total / (PATCH * PATCH)), mask=m_token)


@triton_op("spotedit::token_distance", mutates_args=())
def _op(
    x_features: Sequence[Tensor],
    y_features: Sequence[Tensor],
    rows: int,
    cols: int,
    patch: int,
    shares: Sequence[float],
    y_normalised: bool,
) -> Tensor:
    batch = x_features[0].shape[0]
    out = x_features[0].new_empty(batch, rows * cols, dtype=torch.float32)
    for layer, (x, y, share) in enumerate(zip(x_features, y_features, shares, strict=True)):
        height, width = x.shape[2:]
        x, y = x.flatten(2), y.flatten(2)  # copies neither in NCHW nor in channels_last
        channels, n = x.shape[1:]
        distance = x.new_empty(batch, n, dtype=torch.float32)
        with launch_device(x):
            wrap_triton(_distance)[(triton.cdiv(n, BLOCK_P), batch)](
                x, y, distance, n, channels, *x.stride(),
                0 if y.shape[0] == 1 else y.stride(0), *y.stride()[1:],
                UNIT_Y=y_normalised, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
                enable_fp_fusion=False,  # else equal maps differ by the rounding of a fused product
            )  # fmt: skip
            wrap_triton(_pool)[(triton.cdiv(rows * cols, POOL_BLOCK), batch)](
                distance, out, share, min(layer, 1), height, width, rows, cols,
                PATCH=patch, BLOCK=POOL_BLOCK, num_warps=POOL_WARPS,
            )  # fmt: skip
    return out


def token_distance(
    x_features: tuple[Tensor, ...],
    y_features: tuple[Tensor, ...],
    grid: tuple[int, int],
    patch: int,
    shares: tuple[float, ...],
    y_normalised: bool,
) -> Tensor:
    return torch.ops.spotedit.token_distance(
        x_features, y_features, *grid, patch, shares, y_normalised
    )
