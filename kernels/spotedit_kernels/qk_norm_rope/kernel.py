"""Norm, rotation and cache write in one pass: one program a tile of (row, head) pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..primitives import checked_row, launch_device, wrap_triton
from .reference import Weights

TILE = 1024  # elements of each of q, k and v that a program takes
NUM_WARPS = 4


@triton.jit
def _load_pairs(
    p_x, d_stride, m_x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """First and second members of the pairs of the rows at p_x [P, 1]: [P, BLOCK_D / 2], fp32."""
    if INTERLEAVED:  # a contiguous tile, split in registers: stride-2 loads would not vectorise
        d = tl.arange(0, BLOCK_D)[None, :]
        b_x = tl.load(p_x + d * d_stride, mask=(d < HEAD_DIM) & m_x, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(b_x, (b_x.shape[0], BLOCK_D // 2, 2)))
    else:
        d = tl.arange(0, BLOCK_D // 2)[None, :]
        mask, p_second = (d < HEAD_DIM // 2) & m_x, p_x + HEAD_DIM // 2 * d_stride
        first = tl.load(p_x + d * d_stride, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(p_second + d * d_stride, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(
    p_x, d_stride, m_x, first, second,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The inverse of _load_pairs, rounding to the dtype."""
    first, second = first.to(p_x.dtype.element_ty), second.to(p_x.dtype.element_ty)
    if INTERLEAVED:
        d = tl.arange(0, BLOCK_D)[None, :]
        b_x = tl.interleave(first, second)
        tl.store(p_x + d * d_stride, b_x, mask=(d < HEAD_DIM) & m_x)
    else:
        d = tl.arange(0, BLOCK_D // 2)[None, :]
        mask, p_second = (d < HEAD_DIM // 2) & m_x, p_x + HEAD_DIM // 2 * d_stride
        tl.store(p_x + d * d_stride, first, mask=mask)
        tl.store(p_second + d * d_stride, second, mask=mask)


@triton.jit
def _load_table(p_x, m_x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A table's values for both members of the pairs: [P, BLOCK_D / 2]."""
    first, second = _load_pairs(p_x, 1, m_x, HEAD_DIM, BLOCK_D, INTERLEAVED)
    if not INTERLEAVED:
        second = first  # the same angle; unused members of an interleaved load make it strided
    return first, second


@triton.jit
def _rotate(first, second, cos, sin):
    """Turn the pairs by the angles of both members, unrounded."""
    return first * cos[0] - second * sin[0], second * cos[1] + first * sin[1]


@triton.jit
def _normalise(
    first, second, p_weight, p_text_weight, is_text, eps, DTYPE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """RMSNorm of the pairs [P, BLOCK_D / 2], rounded to DTYPE; no text weight: p_weight's."""
    scale = tl.rsqrt(tl.sum(first * first + second * second, 1) / HEAD_DIM + eps)[:, None]
    w_first, w_second = 1.0, 1.0
    # a row for each of [P]: a single one for the tile would pass through shared memory
    o_w = tl.zeros(is_text.shape, tl.int32)
    if p_weight is not None:
        w_first, w_second = _load_pairs(p_weight + o_w, 1, True, HEAD_DIM, BLOCK_D, INTERLEAVED)
    if p_text_weight is not None:
        text = _load_pairs(p_text_weight + o_w, 1, is_text, HEAD_DIM, BLOCK_D, INTERLEAVED)
        w_first = tl.where(is_text, text[0], w_first)
        w_second = tl.where(is_text, text[1], w_second)
    first, second = first * scale * w_first, second * scale * w_second
    return first.to(DTYPE).to(tl.float32), second.to(DTYPE).to(tl.float32)


@triton.jit(do_not_specialize=["n_entries", "n_rows", "n_ref", "text_len", "slots_b"])
def _qk_norm_rope(
    p_q_out, p_q, p_k, p_v, p_k_cache, p_v_cache, p_k_ref, p_slots,
    p_cos, p_sin, p_cos_ref, p_sin_ref,
    p_q_weight, p_k_weight, p_text_q_weight, p_text_k_weight,
    eps, n_entries, n_rows, n_ref, text_len, heads,
    q_b, q_s, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d,
    k_cache_b, k_cache_s, k_cache_h, k_cache_d, v_cache_b, v_cache_s, v_cache_h, v_cache_d,
    k_ref_b, k_ref_s, k_ref_h, k_ref_d,
    slots_b, cos_b, cos_s, sin_b, sin_s, cos_ref_s, sin_ref_s,
    ALIGNED: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """No slots: rows in order. ALIGNED: the tables have a row an entry, else one a slot."""
    DTYPE: tl.constexpr = p_q.dtype.element_ty
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P], (entry, head)
    entry, head = pair // heads, (pair % heads).to(tl.int64)[:, None]
    m_entry = entry < n_entries
    if p_slots is None:
        row, m_row = entry.to(tl.int64), m_entry
    else:
        row, m_row = checked_row(p_slots + batch * slots_b, entry, m_entry, n_rows)
    entry, row = entry.to(tl.int64)[:, None], row[:, None]  # [P, 1]
    m_entry, m_row, is_text = m_entry[:, None], m_row[:, None], entry < text_len
    d = tl.arange(0, BLOCK_D)[None, :]

    # masked by m_entry: none of the three waits for the slots
    p_q += batch * q_b + entry * q_s + head * q_h
    p_k += batch * k_b + entry * k_s + head * k_h
    p_v += batch * v_b + entry * v_s + head * v_h
    q_first, q_second = _load_pairs(p_q, q_d, m_entry, HEAD_DIM, BLOCK_D, INTERLEAVED)
    k_first, k_second = _load_pairs(p_k, k_d, m_entry, HEAD_DIM, BLOCK_D, INTERLEAVED)
    b_v = tl.load(p_v + d * v_d, mask=(d < HEAD_DIM) & m_entry, other=0.0)

    at = entry if ALIGNED else row
    p_cos += batch * cos_b + at * cos_s
    p_sin += batch * sin_b + at * sin_s
    cos = _load_table(p_cos, m_row, HEAD_DIM, BLOCK_D, INTERLEAVED)
    sin = _load_table(p_sin, m_row, HEAD_DIM, BLOCK_D, INTERLEAVED)

    tl.debug_barrier()  # all loads in flight: ptxas would move those of k and v below q's norm

    q_first, q_second = _normalise(
        q_first, q_second, p_q_weight, p_text_q_weight, is_text, eps,
        DTYPE, HEAD_DIM, BLOCK_D, INTERLEAVED,
    )  # fmt: skip
    p_q_out += ((batch * n_entries + entry) * heads + head) * HEAD_DIM
    first, second = _rotate(q_first, q_second, cos, sin)
    _store_pairs(p_q_out, 1, m_entry, first, second, HEAD_DIM, BLOCK_D, INTERLEAVED)

    k_first, k_second = _normalise(
        k_first, k_second, p_k_weight, p_text_k_weight, is_text, eps,
        DTYPE, HEAD_DIM, BLOCK_D, INTERLEAVED,
    )  # fmt: skip
    p_k_cache += batch * k_cache_b + row * k_cache_s + head * k_cache_h
    first, second = _rotate(k_first, k_second, cos, sin)
    _store_pairs(p_k_cache, k_cache_d, m_row, first, second, HEAD_DIM, BLOCK_D, INTERLEAVED)

    p_v_cache += batch * v_cache_b + row * v_cache_s + head * v_cache_h
    tl.store(p_v_cache + d * v_cache_d, b_v, mask=(d < HEAD_DIM) & m_row)

    if p_k_ref is not None:
        at = row - (n_rows - n_ref)
        m_ref = m_row & (at >= 0)
        at = tl.where(m_ref, at, 0)
        cos = _load_table(p_cos_ref + at * cos_ref_s, m_ref, HEAD_DIM, BLOCK_D, INTERLEAVED)
        sin = _load_table(p_sin_ref + at * sin_ref_s, m_ref, HEAD_DIM, BLOCK_D, INTERLEAVED)
        p_k_ref += batch * k_ref_b + at * k_ref_s + head * k_ref_h
        first, second = _rotate(k_first, k_second, cos, sin)
        _store_pairs(p_k_ref, k_ref_d, m_ref, first, second, HEAD_DIM, BLOCK_D, INTERLEAVED)


@triton_op("spotedit::qk_norm_rope", mutates_args={"k_cache", "v_cache", "k_ref"})
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
    b, m, h, _ = q.shape
    d = int(q.shape[3])  # static under torch.compile
    q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    block_d = triton.next_power_of_2(d)
    block_p = max(1, TILE // block_d)
    aligned = cos.ndim == 3
    grid = (triton.cdiv(m * h, block_p), b)
    with launch_device(q):
        wrap_triton(_qk_norm_rope)[grid](
            q_out, q, k, v, k_cache, v_cache, k_ref, slots, cos, sin, cos_ref, sin_ref,
            q_weight, k_weight, text_q_weight, text_k_weight,
            eps, m, k_cache.shape[1], 0 if k_ref is None else k_ref.shape[1], text_len, h,
            *(stride for x in (q, k, v, k_cache, v_cache) for stride in x.stride()),
            *((0, 0, 0, 0) if k_ref is None else k_ref.stride()),
            slots.stride(0) if slots is not None and slots.ndim == 2 else 0,
            *(stride for x in (cos, sin)
              for stride in (x.stride()[:2] if aligned else (0, x.stride(0)))),
            *(0 if x is None else x.stride(0) for x in (cos_ref, sin_ref)),
            ALIGNED=aligned, INTERLEAVED=interleaved,
            HEAD_DIM=d, BLOCK_P=block_p, BLOCK_D=block_d, num_warps=NUM_WARPS,
        )  # fmt: skip
    return q_out


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
    ref: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """As the reference; padded rows of the result are 0 if q is finite there."""
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    k_ref, cos_ref, sin_ref = ref or (None, None, None)
    (text_q, image_q), (text_k, image_k) = q_weights, k_weights
    return torch.ops.spotedit.qk_norm_rope(
        q, k, v, k_cache, v_cache, k_ref,
        *(_dense(x) for x in (slots, cos, sin, cos_ref, sin_ref, image_q, image_k)),
        *(None if text is image else _dense(text)
          for text, image in ((text_q, image_q), (text_k, image_k))),
        text_len, eps, interleaved,
    )  # fmt: skip


def _dense(x: Tensor | None) -> Tensor | None:
    """`x` with its last dimension contiguous."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()
