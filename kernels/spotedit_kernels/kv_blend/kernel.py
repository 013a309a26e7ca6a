"""The blend of K and V rows in one pass: one program a tile of (row, head) pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..primitives import checked_row, launch_device, wrap_triton

TILE = 2048  # elements of K a program blends
NUM_WARPS = 4


@triton.jit
def _lerp(ref, cached, w):
    """ref + w (cached - ref), exact at w = 0 and w = 1."""
    step = cached - ref
    return tl.where(w < 0.5, ref + w * step, cached - (1.0 - w) * step)


@triton.jit
def _cosine_weight(t):
    """cos^2(pi t / 2) of t in 0..1: Taylor's series to x^14, below 1e-9 off; tl.cos spills."""
    x = tl.minimum(tl.maximum(t, 0.0), 1.0) * 1.5707963267948966
    xx = x * x
    cosine = 2.08767569878681e-9 - xx * 1.1470745597729725e-11
    cosine = 2.48015873015873e-5 + xx * (-2.755731922398589e-7 + xx * cosine)
    cosine = 4.1666666666666664e-2 + xx * (-1.388888888888889e-3 + xx * cosine)
    cosine = 1.0 + xx * (-0.5 + xx * cosine)
    return cosine * cosine


@triton.jit(do_not_specialize=["n_entries", "n_rows", "index_b"])
def _kv_blend(
    p_k_out, p_v_out, p_k_cached, p_v_cached, p_k_ref, p_v_ref, p_index, p_weight,
    weight, n_entries, n_rows, heads,
    k_out_b, k_out_s, k_out_h, k_out_d, v_out_b, v_out_s, v_out_h, v_out_d,
    k_cached_b, k_cached_s, k_cached_h, k_cached_d, v_cached_b, v_cached_s, v_cached_h, v_cached_d,
    k_ref_b, k_ref_s, k_ref_h, k_ref_d, v_ref_b, v_ref_s, v_ref_h, v_ref_d, index_b,
    WEIGHT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P], (entry, head)
    entry, head = pair // heads, (pair % heads).to(tl.int64)
    row, m_row = checked_row(p_index + batch * index_b, entry, entry < n_entries, n_rows)
    d = tl.arange(0, BLOCK_D)
    mask = m_row[:, None] & (d < HEAD_DIM)[None, :]  # [P, D]
    row, head, d = row[:, None], head[:, None], d[None, :]

    if WEIGHT == "number":
        w = weight
    else:
        w = tl.load(p_weight).to(tl.float32)
        if WEIGHT == "time":
            w = _cosine_weight(w)

    o_cached = batch * k_cached_b + row * k_cached_s + head * k_cached_h + d * k_cached_d
    o_ref = batch * k_ref_b + row * k_ref_s + head * k_ref_h + d * k_ref_d
    o_out = batch * k_out_b + row * k_out_s + head * k_out_h + d * k_out_d
    b_cached = tl.load(p_k_cached + o_cached, mask=mask, other=0.0).to(tl.float32)
    b_ref = tl.load(p_k_ref + o_ref, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_k_out + o_out, _lerp(b_ref, b_cached, w).to(p_k_out.dtype.element_ty), mask=mask)

    o_cached = batch * v_cached_b + row * v_cached_s + head * v_cached_h + d * v_cached_d
    o_ref = batch * v_ref_b + row * v_ref_s + head * v_ref_h + d * v_ref_d
    o_out = batch * v_out_b + row * v_out_s + head * v_out_h + d * v_out_d
    b_cached = tl.load(p_v_cached + o_cached, mask=mask, other=0.0).to(tl.float32)
    b_ref = tl.load(p_v_ref + o_ref, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_v_out + o_out, _lerp(b_ref, b_cached, w).to(p_v_out.dtype.element_ty), mask=mask)


@triton_op("spotedit::kv_blend", mutates_args={"k_out", "v_out"})
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
    b, s, h, _ = k_out.shape
    d = int(k_out.shape[3])  # static under torch.compile
    block_d = triton.next_power_of_2(d)
    block_p = max(1, TILE // block_d)
    m = index.shape[-1]
    tensors = (k_out, v_out, k_cached, v_cached, k_ref, v_ref)
    grid = (triton.cdiv(m * h, block_p), b)
    with launch_device(k_out):
        wrap_triton(_kv_blend)[grid](
            *tensors, index, device_weight, weight, m, min(s, k_ref.shape[1]), h,
            *(stride for tensor in tensors for stride in tensor.stride()),
            0 if index.ndim == 1 else index.stride(0),
            WEIGHT="number" if device_weight is None else "time" if is_time else "weight",
            HEAD_DIM=d, BLOCK_P=block_p, BLOCK_D=block_d, num_warps=NUM_WARPS,
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
    """As the reference; with `is_time`, a tensor `weight` is t and becomes cos^2(pi t / 2)."""
    if index.numel() == 0 or k_out.numel() == 0:
        return
    number = 0.0 if isinstance(weight, Tensor) else weight
    tensor = weight if isinstance(weight, Tensor) else None
    index = index if index.stride(-1) == 1 else index.contiguous()
    torch.ops.spotedit.kv_blend(
        k_out, v_out, k_cached, v_cached, k_ref, v_ref, index, tensor, number, is_time
    )
