"""Token distance in two kernels per layer: one for the map of distances, one to pool it to tokens.

Names in the kernels begin with ``p_`` for a pointer, ``o_`` for an offset, ``m_`` for a mask and
``b_`` for a tile (block). ``stride_xc`` is the stride of the tensor x along the axis c. The axes
are b (batch), c (channels) and p (positions: a map's H and W, flattened). In `_distance`, tiles
have the shape [P, C], with P = BLOCK_P positions and C = BLOCK_C channels. In `_pool` they have the
shape [X], with X = BLOCK tokens. A cell is a position of the resized map; a token has PATCH x PATCH
cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import launch_device, wrap_triton

BLOCK_P = 64  # number of positions that a program takes
BLOCK_C = 32  # number of channels that it reads at a time
NUM_WARPS = 4
POOL_BLOCK = 128  # number of tokens that a program of the pooling takes
POOL_WARPS = 4


@triton.jit
def _load_features(
    p_features, batch, position, channel, num_positions, num_channels, stride_b, stride_c, stride_p
):
    """Load an fp32 tile [P, C] of a map [B, C, num_positions]; it is 0 outside the map."""
    o_tile = batch * stride_b + position.to(tl.int64)[:, None] * stride_p
    o_tile += channel.to(tl.int64)[None, :] * stride_c
    m_tile = (position < num_positions)[:, None] & (channel < num_channels)[None, :]
    return tl.load(p_features + o_tile, mask=m_tile, other=0.0).to(tl.float32)


@triton.jit
def _inverse_length(b_squares):
    """Return 1 / |vector| [P] from squares [P, C]. It is finite, also for a zero vector."""
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(b_squares, 1)), 1e-12)


# Triton may specialise on num_positions (`_pool` forbids that for its sizes): it vectorises the
# masked loads only if it knows that num_positions is divisible by 16. It specialises on the strides
# of a dense map anyway, and these are multiples of num_positions, so no more variants are compiled.
@triton.jit
def _distance(
    p_x, p_y, p_map, num_positions, num_channels,
    stride_xb, stride_xc, stride_xp, stride_yb, stride_yc, stride_yp,
    UNIT_Y: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the squared distance of the unit vectors of x and y to p_map [B, num_positions].

    UNIT_Y: the vectors of y have unit length already. The distance is computed as a sum of squared
    differences, not as 2 - 2 cos, which loses accuracy for close vectors.
    """
    batch = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P]
    num_blocks = tl.cdiv(num_channels, BLOCK_C)

    # Lengths of the channel vectors
    b_xx = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    b_yy = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for i in range(0, num_blocks):
        channel = i * BLOCK_C + tl.arange(0, BLOCK_C)  # [C]
        b_x = _load_features(
            p_x, batch, position, channel, num_positions, num_channels,
            stride_xb, stride_xc, stride_xp,
        )  # fmt: skip
        b_xx += b_x * b_x
        if not UNIT_Y:
            b_y = _load_features(
                p_y, batch, position, channel, num_positions, num_channels,
                stride_yb, stride_yc, stride_yp,
            )  # fmt: skip
            b_yy += b_y * b_y
    x_factor = _inverse_length(b_xx)[:, None]
    if not UNIT_Y:
        y_factor = _inverse_length(b_yy)[:, None]

    # Squared difference of the unit vectors. Go backwards through the channels, because the caches
    # still hold those that were read last.
    b_total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for i in range(0, num_blocks):
        channel = (num_blocks - 1 - i) * BLOCK_C + tl.arange(0, BLOCK_C)
        b_x = _load_features(
            p_x, batch, position, channel, num_positions, num_channels,
            stride_xb, stride_xc, stride_xp,
        )  # fmt: skip
        b_y = _load_features(
            p_y, batch, position, channel, num_positions, num_channels,
            stride_yb, stride_yc, stride_yp,
        )  # fmt: skip
        if not UNIT_Y:
            b_y *= y_factor
        b_difference = b_x * x_factor - b_y
        b_total += b_difference * b_difference
    tl.store(
        p_map + batch * num_positions + position,
        tl.sum(b_total, 1),
        mask=position < num_positions,
    )


@triton.jit
def _taps(cell, size_in, size_out):
    """Interpolate along one axis, from size_in positions of the map to size_out cells.

    Return the two positions between which each cell lies, and the interpolation weight of the
    second. The positions are computed in exact integers. If the weight is 0, the second position is
    the first, so that a NaN at the next position cannot spread.
    """
    # 2 * size_out times the cell's coordinate in the map, (cell + 1/2) * size_in/size_out - 1/2
    numerator = tl.maximum((2 * cell + 1) * size_in - size_out, 0)
    low = numerator // (2 * size_out)
    remainder = numerator - low * (2 * size_out)
    high = tl.where((remainder > 0) & (low + 1 < size_in), low + 1, low)
    return low, high, remainder.to(tl.float32) / (2 * size_out).to(tl.float32)


@triton.jit(do_not_specialize=["add", "height", "width", "rows", "cols"])
def _pool(
    p_map, p_out, share, add, height, width, rows, cols,
    PATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resize a map [B, height, width] to (rows*PATCH, cols*PATCH), and pool it to p_out [B, N].

    Each of the N = rows*cols tokens gets the average of its PATCH x PATCH cells, times `share`, the
    layer's weight divided by the sum of all layers' weights. If `add` is not 0, the result is added
    to p_out.
    """
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [X]
    m_token = token < rows * cols
    row, col = token // cols, token % cols
    p_map += batch * height * width

    # Sum the token's cells, each interpolated between four positions of the map
    b_total = tl.zeros([BLOCK], dtype=tl.float32)
    for dy in range(PATCH):
        top, bottom, bottom_weight = _taps(row * PATCH + dy, height, rows * PATCH)
        for dx in range(PATCH):
            left, right, right_weight = _taps(col * PATCH + dx, width, cols * PATCH)
            b_top_left = tl.load(p_map + top * width + left, mask=m_token, other=0.0)
            b_top_right = tl.load(p_map + top * width + right, mask=m_token, other=0.0)
            b_bottom_left = tl.load(p_map + bottom * width + left, mask=m_token, other=0.0)
            b_bottom_right = tl.load(p_map + bottom * width + right, mask=m_token, other=0.0)
            b_upper = (1.0 - right_weight) * b_top_left + right_weight * b_top_right
            b_lower = (1.0 - right_weight) * b_bottom_left + right_weight * b_bottom_right
            b_total += (1.0 - bottom_weight) * b_upper + bottom_weight * b_lower

    o_out = batch * rows * cols + token
    b_before = tl.load(p_out + o_out, mask=m_token & (add != 0), other=0.0)
    tl.store(p_out + o_out, b_before + share * (b_total / (PATCH * PATCH)), mask=m_token)


@triton_op(add_op_namespace_prefix("token_distance"), mutates_args=())
def _op(
    x_features: Sequence[Tensor],
    y_features: Sequence[Tensor],
    rows: int,
    cols: int,
    patch: int,
    shares: Sequence[float],
    y_normalised: bool,
) -> Tensor:
    """Launch both kernels for each layer; the first layer writes the scores, the others add."""
    batch = x_features[0].shape[0]
    out = x_features[0].new_empty(batch, rows * cols, dtype=torch.float32)
    for layer, (x, y, share) in enumerate(zip(x_features, y_features, shares, strict=True)):
        height, width = x.shape[2:]
        x, y = x.flatten(2), y.flatten(2)  # views, both in NCHW and in channels_last
        num_channels, num_positions = x.shape[1:]
        distance = x.new_empty(batch, num_positions, dtype=torch.float32)
        stride_yb, stride_yc, stride_yp = y.stride()
        if y.shape[0] == 1:
            stride_yb = 0  # one y for the whole batch
        with launch_device(x):
            wrap_triton(_distance)[(triton.cdiv(num_positions, BLOCK_P), batch)](
                x, y, distance, num_positions, num_channels, *x.stride(),
                stride_yb, stride_yc, stride_yp,
                UNIT_Y=y_normalised, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
                # With fused multiply-add, x * x_factor - y * y_factor would not be exactly 0
                # where x equals y.
                enable_fp_fusion=False,
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
    """Take the same arguments and return the same result as `reference.token_distance`."""
    rows, cols = grid
    return ops.token_distance(x_features, y_features, rows, cols, patch, shares, y_normalised)
