"""The blend of K and V rows in one pass; a program takes a tile of (entry, head) items.

Names in the kernel: ``p_`` pointer, ``o_`` offset, ``m_`` mask, ``b_`` tile; ``stride_k_out_s`` is
the stride of k_out along s. Axes: b batch, s rows, h heads, d channels of a head. An entry is one
of the index's M entries, and holds the row to blend. Tiles have the shape [P, D], with P = BLOCK_P
items and D = BLOCK_D channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import checked_row, launch_device, wrap_triton

TILE = 2048  # number of elements of K that a program blends
NUM_WARPS = 4


@triton.jit
def _lerp(b_ref, b_cached, w):
    """Return ref + w (cached - ref), exact at w = 0 and w = 1.

    The formula starts from the operand that weighs more.
    """
    difference = b_cached - b_ref
    return tl.where(w < 0.5, b_ref + w * difference, b_cached - (1.0 - w) * difference)


@triton.jit
def _cosine_weight(t):
    """Return cos^2(pi t / 2) of t in 0..1.

    Taylor's series to x^14 is off by less than 1e-9; tl.cos would spill registers.
    """
    x = tl.minimum(tl.maximum(t, 0.0), 1.0) * 1.5707963267948966
    xx = x * x
    cosine = 2.08767569878681e-9 - xx * 1.1470745597729725e-11
    cosine = 2.48015873015873e-5 + xx * (-2.755731922398589e-7 + xx * cosine)
    cosine = 4.1666666666666664e-2 + xx * (-1.388888888888889e-3 + xx * cosine)
    cosine = 1.0 + xx * (-0.5 + xx * cosine)
    return cosine * cosine


# These vary between pictures and steps; specialised on, a new value could compile a new kernel.
@triton.jit(do_not_specialize=["num_entries", "num_rows", "stride_index_b"])
def _kv_blend(
    p_k_out, p_v_out, p_k_cached, p_v_cached, p_k_ref, p_v_ref, p_index, p_weight,
    weight, num_entries, num_rows, num_heads,
    stride_k_out_b, stride_k_out_s, stride_k_out_h, stride_k_out_d,
    stride_v_out_b, stride_v_out_s, stride_v_out_h, stride_v_out_d,
    stride_k_cached_b, stride_k_cached_s, stride_k_cached_h, stride_k_cached_d,
    stride_v_cached_b, stride_v_cached_s, stride_v_cached_h, stride_v_cached_d,
    stride_k_ref_b, stride_k_ref_s, stride_k_ref_h, stride_k_ref_d,
    stride_v_ref_b, stride_v_ref_s, stride_v_ref_h, stride_v_ref_d,
    stride_index_b,
    WEIGHT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Blend P items of one image.

    WEIGHT says where the weight comes from: "number", the argument `weight`; "weight", the device
    scalar at p_weight; "time", the device scalar t at p_weight, from which it is computed.
    """
    # The rows and heads of this program
    batch = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P]
    entry, head = item // num_heads, (item % num_heads).to(tl.int64)
    p_entries = p_index + batch * stride_index_b
    row, m_row = checked_row(p_entries, entry, entry < num_entries, num_rows)
    d = tl.arange(0, BLOCK_D)
    m_tile = m_row[:, None] & (d < HEAD_DIM)[None, :]  # [P, D]
    row, head, d = row[:, None], head[:, None], d[None, :]

    # The weight on the cached values
    if WEIGHT == "number":
        w = weight
    else:
        w = tl.load(p_weight).to(tl.float32)
        if WEIGHT == "time":
            w = _cosine_weight(w)

    # Blend the keys
    o_cached = (batch * stride_k_cached_b + row * stride_k_cached_s
                + head * stride_k_cached_h + d * stride_k_cached_d)  # fmt: skip
    o_ref = (batch * stride_k_ref_b + row * stride_k_ref_s
             + head * stride_k_ref_h + d * stride_k_ref_d)  # fmt: skip
    o_out = (batch * stride_k_out_b + row * stride_k_out_s
             + head * stride_k_out_h + d * stride_k_out_d)  # fmt: skip
    b_cached = tl.load(p_k_cached + o_cached, mask=m_tile, other=0.0).to(tl.float32)
    b_ref = tl.load(p_k_ref + o_ref, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(p_k_out + o_out, _lerp(b_ref, b_cached, w).to(p_k_out.dtype.element_ty), mask=m_tile)

    # Blend the values
    o_cached = (batch * stride_v_cached_b + row * stride_v_cached_s
                + head * stride_v_cached_h + d * stride_v_cached_d)  # fmt: skip
    o_ref = (batch * stride_v_ref_b + row * stride_v_ref_s
             + head * stride_v_ref_h + d * stride_v_ref_d)  # fmt: skip
    o_out = (batch * stride_v_out_b + row * stride_v_out_s
             + head * stride_v_out_h + d * stride_v_out_d)  # fmt: skip
    b_cached = tl.load(p_v_cached + o_cached, mask=m_tile, other=0.0).to(tl.float32)
    b_ref = tl.load(p_v_ref + o_ref, mask=m_tile, other=0.0).to(tl.float32)
    tl.store(p_v_out + o_out, _lerp(b_ref, b_cached, w).to(p_v_out.dtype.element_ty), mask=m_tile)


@triton_op(add_op_namespace_prefix("kv_blend"), mutates_args={"k_out", "v_out"})
def _op(
    k_out: Tensor,
    v_out: Tensor,
    k_cached: Tensor,
    v_cached: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    index: Tensor,
    device_weight: Tensor | None,
    weight: float,
    is_time: bool,
) -> None:
    """Launch the kernel; with `is_time`, `device_weight` holds t and not the weight."""
    b, s, h, _ = k_out.shape
    d = int(k_out.shape[3])  # static under torch.compile
    block_d = triton.next_power_of_2(d)
    block_p = max(1, TILE // block_d)
    m = index.shape[-1]
    tensors = (k_out, v_out, k_cached, v_cached, k_ref, v_ref)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    kind = "number"
    if device_weight is not None:
        kind = "time" if is_time else "weight"
    grid = (triton.cdiv(m * h, block_p), b)
    with launch_device(k_out):
        wrap_triton(_kv_blend)[grid](
            *tensors, index, device_weight, weight, m, min(s, k_ref.shape[1]), h,
            *strides, 0 if index.ndim == 1 else index.stride(0),
            WEIGHT=kind, HEAD_DIM=d, BLOCK_P=block_p, BLOCK_D=block_d, num_warps=NUM_WARPS,
        )  # fmt: skip


def kv_blend(
    k_out: Tensor,
    v_out: Tensor,
    k_cached: Tensor,
    v_cached: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    index: Tensor,
    weight: float | Tensor,
    is_time: bool,
) -> None:
    """Follow the reference's contract; with `is_time`, a tensor `weight` is t."""
    if index.numel() == 0 or k_out.numel() == 0:
        return
    if isinstance(weight, Tensor):
        device_weight, number = weight, 0.0
    else:
        device_weight, number = None, weight
    index = index if index.stride(-1) == 1 else index.contiguous()
    ops.kv_blend(
        k_out, v_out, k_cached, v_cached, k_ref, v_ref, index, device_weight, number, is_time
    )
