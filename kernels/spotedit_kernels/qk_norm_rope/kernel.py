"""Norm, rotation and cache write in one pass; a program takes a tile of (entry, head) items.

Names in the kernel: ``p_`` pointer, ``o_`` offset, ``m_`` mask, ``b_`` tile; ``stride_qs`` is the
stride of q along s. Axes: b batch, s tokens, h heads, d channels of a head.

- entry: one of the M tokens that a step computes, 0..M-1. The `text_len` prompt tokens come first.
- row: the place of an entry in the joint sequence, 0..S-1. ``p_slots`` gives it for each entry;
  an entry with a negative row is padding.
- item: one head of one entry. A program takes P = BLOCK_P items and D = BLOCK_D channels.
- pair: two channels that are rotated together. Most tiles come in two halves, ``b_x_first`` and
  ``b_x_second`` [P, D/2], which hold the first and the second channels of the pairs.
- condition keys: keys that are rotated once more by other tables, ``p_k_condition``,
  ``p_cos_condition`` and ``p_sin_condition`` (`k_ref`, `cos_ref` and `sin_ref` of the public
  function).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import checked_row, launch_device, wrap_triton
from .reference import ConditionKeys, Weights

TILE = 1024  # number of elements of each of q, k and v that a program takes
NUM_WARPS = 4


@triton.jit
def _load_pairs(
    p_x, stride_d, m_x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """Load the channels at p_x [P, 1], as two fp32 tiles [P, D/2] of the pairs' members."""
    if INTERLEAVED:  # one contiguous tile, split in registers: stride-2 loads would not vectorise
        d = tl.arange(0, BLOCK_D)[None, :]
        b_x = tl.load(p_x + d * stride_d, mask=(d < HEAD_DIM) & m_x, other=0.0).to(tl.float32)
        b_first, b_second = tl.split(tl.reshape(b_x, (b_x.shape[0], BLOCK_D // 2, 2)))
    else:
        d = tl.arange(0, BLOCK_D // 2)[None, :]
        m_half, p_second = (d < HEAD_DIM // 2) & m_x, p_x + HEAD_DIM // 2 * stride_d
        b_first = tl.load(p_x + d * stride_d, mask=m_half, other=0.0).to(tl.float32)
        b_second = tl.load(p_second + d * stride_d, mask=m_half, other=0.0).to(tl.float32)
    return b_first, b_second


@triton.jit
def _store_pairs(
    p_x, stride_d, m_x, b_first, b_second,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Store pairs where `_load_pairs` loads them, rounded to the dtype of p_x."""
    b_first, b_second = b_first.to(p_x.dtype.element_ty), b_second.to(p_x.dtype.element_ty)
    if INTERLEAVED:
        d = tl.arange(0, BLOCK_D)[None, :]
        b_x = tl.interleave(b_first, b_second)
        tl.store(p_x + d * stride_d, b_x, mask=(d < HEAD_DIM) & m_x)
    else:
        d = tl.arange(0, BLOCK_D // 2)[None, :]
        m_half, p_second = (d < HEAD_DIM // 2) & m_x, p_x + HEAD_DIM // 2 * stride_d
        tl.store(p_x + d * stride_d, b_first, mask=m_half)
        tl.store(p_second + d * stride_d, b_second, mask=m_half)


@triton.jit
def _load_table(p_x, m_x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Load a table's values for the first and second members of the pairs, [P, D/2] each."""
    b_first, b_second = _load_pairs(p_x, 1, m_x, HEAD_DIM, BLOCK_D, INTERLEAVED)
    if not INTERLEAVED:
        # Both members have the same angle, so one half is enough. If the interleaved case used only
        # one half, the compiler would turn the load into a strided one, so that case uses both.
        b_second = b_first
    return b_first, b_second


@triton.jit
def _rotate(b_first, b_second, cos, sin):
    """Rotate the pairs in fp32; the caller rounds. `_load_table` returns `cos` and `sin`."""
    return b_first * cos[0] - b_second * sin[0], b_second * cos[1] + b_first * sin[1]


@triton.jit
def _normalise(
    b_first, b_second, p_weight, p_text_weight, is_text, eps, DTYPE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Apply RMSNorm to the pairs and round them to DTYPE.

    Without p_text_weight the text rows take p_weight; without p_weight the weight is 1.
    """
    scale = tl.rsqrt(tl.sum(b_first * b_first + b_second * b_second, 1) / HEAD_DIM + eps)[:, None]
    b_w_first, b_w_second = 1.0, 1.0
    # A [1, D] tile of weights would be broadcast through shared memory. Adding zeros [P, 1] to the
    # pointer makes each item load its own copy.
    o_w = tl.zeros(is_text.shape, tl.int32)
    if p_weight is not None:
        b_w_first, b_w_second = _load_pairs(p_weight + o_w, 1, True, HEAD_DIM, BLOCK_D, INTERLEAVED)
    if p_text_weight is not None:
        b_text_first, b_text_second = _load_pairs(
            p_text_weight + o_w, 1, is_text, HEAD_DIM, BLOCK_D, INTERLEAVED
        )
        b_w_first = tl.where(is_text, b_text_first, b_w_first)
        b_w_second = tl.where(is_text, b_text_second, b_w_second)
    b_first, b_second = b_first * scale * b_w_first, b_second * scale * b_w_second
    return b_first.to(DTYPE).to(tl.float32), b_second.to(DTYPE).to(tl.float32)


# These vary between pictures and steps. If Triton specialised on them, a new value could trigger a
# compilation.
@triton.jit(
    do_not_specialize=["num_entries", "num_rows", "num_condition", "text_len", "stride_slots_b"]
)
def _qk_norm_rope(
    p_q_out, p_q, p_k, p_v, p_k_cache, p_v_cache, p_k_condition, p_slots,
    p_cos, p_sin, p_cos_condition, p_sin_condition,
    p_q_weight, p_k_weight, p_text_q_weight, p_text_k_weight,
    eps, num_entries, num_rows, num_condition, text_len, num_heads,
    stride_qb, stride_qs, stride_qh, stride_qd,
    stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd,
    stride_k_cache_b, stride_k_cache_s, stride_k_cache_h, stride_k_cache_d,
    stride_v_cache_b, stride_v_cache_s, stride_v_cache_h, stride_v_cache_d,
    stride_k_condition_b, stride_k_condition_s, stride_k_condition_h, stride_k_condition_d,
    stride_slots_b,
    stride_cos_b, stride_cos_s, stride_sin_b, stride_sin_s,
    stride_cos_condition_s, stride_sin_condition_s,
    TABLES_BY_ENTRY: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Process P items of one image.

    Without p_slots the entries are all rows in order. The tables cos and sin are indexed by entry
    with TABLES_BY_ENTRY, otherwise by row.
    """
    DTYPE: tl.constexpr = p_q.dtype.element_ty

    # The entries, rows and heads of this program
    batch = tl.program_id(1).to(tl.int64)
    item = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P]
    entry, head = item // num_heads, (item % num_heads).to(tl.int64)[:, None]
    m_entry = entry < num_entries
    if p_slots is None:
        row, m_row = entry.to(tl.int64), m_entry
    else:
        row, m_row = checked_row(p_slots + batch * stride_slots_b, entry, m_entry, num_rows)
    entry, row = entry.to(tl.int64)[:, None], row[:, None]  # [P, 1]
    m_entry, m_row, is_text = m_entry[:, None], m_row[:, None], entry < text_len
    d = tl.arange(0, BLOCK_D)[None, :]

    # Load q, k and v. The mask is m_entry rather than m_row: m_row depends on p_slots, and the
    # loads would wait for it
    p_q += batch * stride_qb + entry * stride_qs + head * stride_qh
    p_k += batch * stride_kb + entry * stride_ks + head * stride_kh
    p_v += batch * stride_vb + entry * stride_vs + head * stride_vh
    b_q_first, b_q_second = _load_pairs(p_q, stride_qd, m_entry, HEAD_DIM, BLOCK_D, INTERLEAVED)
    b_k_first, b_k_second = _load_pairs(p_k, stride_kd, m_entry, HEAD_DIM, BLOCK_D, INTERLEAVED)
    b_v = tl.load(p_v + d * stride_vd, mask=(d < HEAD_DIM) & m_entry, other=0.0)  # [P, D]

    # Load the tables
    table_row = entry if TABLES_BY_ENTRY else row
    p_cos += batch * stride_cos_b + table_row * stride_cos_s
    p_sin += batch * stride_sin_b + table_row * stride_sin_s
    cos = _load_table(p_cos, m_row, HEAD_DIM, BLOCK_D, INTERLEAVED)
    sin = _load_table(p_sin, m_row, HEAD_DIM, BLOCK_D, INTERLEAVED)

    # Start all loads before any arithmetic: ptxas would move those of k and v below q's norm
    tl.debug_barrier()

    # Normalise and rotate q
    b_q_first, b_q_second = _normalise(
        b_q_first, b_q_second, p_q_weight, p_text_q_weight, is_text, eps,
        DTYPE, HEAD_DIM, BLOCK_D, INTERLEAVED,
    )  # fmt: skip
    p_q_out += ((batch * num_entries + entry) * num_heads + head) * HEAD_DIM
    b_first, b_second = _rotate(b_q_first, b_q_second, cos, sin)
    _store_pairs(p_q_out, 1, m_entry, b_first, b_second, HEAD_DIM, BLOCK_D, INTERLEAVED)

    # Normalise and rotate k, and write it to its cache
    b_k_first, b_k_second = _normalise(
        b_k_first, b_k_second, p_k_weight, p_text_k_weight, is_text, eps,
        DTYPE, HEAD_DIM, BLOCK_D, INTERLEAVED,
    )  # fmt: skip
    p_k_cache += batch * stride_k_cache_b + row * stride_k_cache_s + head * stride_k_cache_h
    b_first, b_second = _rotate(b_k_first, b_k_second, cos, sin)
    _store_pairs(
        p_k_cache, stride_k_cache_d, m_row, b_first, b_second, HEAD_DIM, BLOCK_D, INTERLEAVED
    )

    # Copy v to its cache
    p_v_cache += batch * stride_v_cache_b + row * stride_v_cache_s + head * stride_v_cache_h
    tl.store(p_v_cache + d * stride_v_cache_d, b_v, mask=(d < HEAD_DIM) & m_row)

    # Write the normalised k of the last num_condition rows, rotated by the condition tables
    if p_k_condition is not None:
        condition_row = row - (num_rows - num_condition)
        m_condition = m_row & (condition_row >= 0)
        condition_row = tl.where(m_condition, condition_row, 0)
        p_cos_condition += condition_row * stride_cos_condition_s
        cos = _load_table(p_cos_condition, m_condition, HEAD_DIM, BLOCK_D, INTERLEAVED)
        p_sin_condition += condition_row * stride_sin_condition_s
        sin = _load_table(p_sin_condition, m_condition, HEAD_DIM, BLOCK_D, INTERLEAVED)
        p_k_condition += (
            batch * stride_k_condition_b
            + condition_row * stride_k_condition_s
            + head * stride_k_condition_h
        )
        b_first, b_second = _rotate(b_k_first, b_k_second, cos, sin)
        _store_pairs(
            p_k_condition,
            stride_k_condition_d,
            m_condition,
            b_first,
            b_second,
            HEAD_DIM,
            BLOCK_D,
            INTERLEAVED,
        )


@triton_op(add_op_namespace_prefix("qk_norm_rope"), mutates_args={"k_cache", "v_cache", "k_ref"})
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_ref: Tensor | None,
    slots: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    cos_ref: Tensor | None,
    sin_ref: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    text_q_weight: Tensor | None,
    text_k_weight: Tensor | None,
    text_len: int,
    eps: float,
    interleaved: bool,
) -> Tensor:
    """Launch the kernel; all tables (cos, sin and `_ref`) and weights have unit strides along D."""
    b, m, h, _ = q.shape
    d = int(q.shape[3])  # static under torch.compile
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    block_d = triton.next_power_of_2(d)
    block_p = max(1, TILE // block_d)
    has_tables_by_entry = cos.ndim == 3
    num_condition = 0 if k_ref is None else k_ref.shape[1]
    grid = (triton.cdiv(m * h, block_p), b)
    with launch_device(q):
        wrap_triton(_qk_norm_rope)[grid](
            q_out, q, k, v, k_cache, v_cache, k_ref, slots, cos, sin, cos_ref, sin_ref,
            q_weight, k_weight, text_q_weight, text_k_weight,
            eps, m, k_cache.shape[1], num_condition, text_len, h,
            *q.stride(), *k.stride(), *v.stride(), *k_cache.stride(), *v_cache.stride(),
            *((0, 0, 0, 0) if k_ref is None else k_ref.stride()),
            slots.stride(0) if slots is not None and slots.ndim == 2 else 0,
            *_table_strides(cos), *_table_strides(sin),
            0 if cos_ref is None else cos_ref.stride(0),
            0 if sin_ref is None else sin_ref.stride(0),
            TABLES_BY_ENTRY=has_tables_by_entry, INTERLEAVED=interleaved,
            HEAD_DIM=d, BLOCK_P=block_p, BLOCK_D=block_d, num_warps=NUM_WARPS,
        )  # fmt: skip
    return q_out


def _table_strides(table: Tensor) -> tuple[int, int]:
    """Return the strides of a table ``[S, D]`` or ``[B, M, D]`` along the batch and S or M."""
    if table.ndim == 2:
        return 0, table.stride(0)
    return table.stride(0), table.stride(1)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    text_len: int,
    q_weights: Weights,
    k_weights: Weights,
    eps: float,
    interleaved: bool,
    condition: ConditionKeys | None,
) -> Tensor:
    """Follow the reference's contract.

    The result of a padding entry is 0 if its q is finite, because masked table loads give 0.
    """
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    k_ref, cos_ref, sin_ref = condition or (None, None, None)
    # To the kernel, text weights of None mean that all tokens have the image weights.
    text_q_weight = None if q_weights.text is q_weights.image else q_weights.text
    text_k_weight = None if k_weights.text is k_weights.image else k_weights.text
    contiguous = [
        _unit_stride(x)
        for x in (slots, cos, sin, cos_ref, sin_ref,
                  q_weights.image, k_weights.image, text_q_weight, text_k_weight)
    ]  # fmt: skip
    return ops.qk_norm_rope(
        q, k, v, k_cache, v_cache, k_ref, *contiguous, text_len, eps, interleaved
    )


def _unit_stride(x: Tensor | None) -> Tensor | None:
    """Return `x` with its last dimension contiguous."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()
