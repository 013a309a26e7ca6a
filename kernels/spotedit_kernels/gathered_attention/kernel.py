"""Flash attention of gathered rows: one program a tile of queries, head and share of the keys."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from ..primitives import checked_row, launch_device
from .plan import DESCRIPTOR_TILES, choose_splits, choose_tile, device_target

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

REDUCE_ROWS, REDUCE_WARPS = 16, 4


@triton.jit
def _rows(p_x, o_x, batch, first, column, row, d, mask, x_s, x_d, BLOCK_N: tl.constexpr,
          BLOCK_D: tl.constexpr, DESCRIPTORS: tl.constexpr):  # fmt: skip
    """[N, D] of one head: rows `row` after the offset o_x, or, by descriptor, `first` and on.

    It is 0 outside the mask; by descriptor, outside the tensor.
    """
    if DESCRIPTORS:
        b_x = p_x.load([batch, first, column]).reshape([BLOCK_N, BLOCK_D])
    else:
        p_x += o_x
        b_x = tl.load(p_x + row[:, None] * x_s + d[None, :] * x_d, mask=mask, other=0.0)
    return b_x


@triton.jit(do_not_specialize=[
    "n_queries", "n_keys", "chunk", "index_b", "mask_b", "k_scale_b", "v_scale_b",
])  # fmt: skip
def _attend(
    p_q, p_k, p_v, p_out, p_index, p_mask, p_k_scale, p_v_scale, p_part, p_lse,
    scale, n_queries, n_keys, heads, chunk,
    q_b, q_s, q_h, q_d, k_b, k_s, k_h, k_d, v_b, v_s, v_h, v_d, out_b, out_s, out_h, out_d,
    index_b, mask_b, mask_s, k_scale_b, k_scale_s, k_scale_h, v_scale_b, v_scale_s, v_scale_h,
    INDEX: tl.constexpr, KEY_MASK: tl.constexpr, INT8: tl.constexpr, SPLIT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(n_queries, BLOCK_M)
    pair, split = tl.program_id(0) // tiles, tl.program_id(1)
    batch, head = pair // heads, pair % heads
    b, h = batch.to(tl.int64), head.to(tl.int64)
    start = tl.program_id(0) % tiles * BLOCK_M
    position = start + tl.arange(0, BLOCK_M)  # [M]
    m_row = position < n_queries
    if INDEX:
        row, m_row = checked_row(p_index + b * index_b, position, m_row, n_keys)
    else:
        row = position.to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    m_d = (d < HEAD_DIM)[None, :]
    m_q = m_row[:, None] & m_d
    b_q = _rows(p_q, b * q_b + h * q_h, batch, start, head * HEAD_DIM, row, d, m_q, q_s, q_d,
                BLOCK_M, BLOCK_D, DESCRIPTORS)  # fmt: skip
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)  # of the scaled logits, base 2
    total = tl.zeros([BLOCK_M], tl.float32)
    low = split * chunk
    high = tl.minimum(low + chunk, n_keys)
    for first in range(low, high, BLOCK_N):
        f = tl.cast(first, tl.int64)
        key = tl.arange(0, BLOCK_N)  # [N], from `first` on: a tile's offsets fit 32 bits
        m_key = key < high - first
        if KEY_MASK:
            p_m = p_mask + (b * mask_b + f * mask_s)
            m_key &= tl.load(p_m + key * mask_s, mask=m_key, other=0) != 0
        m_kv = m_key[:, None] & m_d
        b_k = _rows(p_k, b * k_b + h * k_h + f * k_s, batch, first, head * HEAD_DIM, key, d, m_kv,
                    k_s, k_d, BLOCK_N, BLOCK_D, DESCRIPTORS)  # fmt: skip
        logits = tl.dot(b_q, b_k.to(b_q.dtype).T, input_precision="ieee")  # [M, N]
        if INT8:
            p_s = p_k_scale + (b * k_scale_b + h * k_scale_h + f * k_scale_s)
            logits *= tl.load(p_s + key * k_scale_s, mask=m_key, other=0.0)[None, :]
        logits = tl.where(m_key[None, :], logits, -float("inf"))
        new_top = tl.maximum(top, tl.max(logits, 1) * scale)
        shift = new_top
        if KEY_MASK:
            shift = tl.where(new_top == -float("inf"), 0.0, new_top)  # no key so far
        p = tl.exp2(logits * scale - shift[:, None])
        shrink = tl.exp2(top - shift)
        top = new_top
        total = total * shrink + tl.sum(p, 1)
        if INT8:  # times 64, which is undone below: products of fp16 above its subnormals
            p_s = p_v_scale + (b * v_scale_b + h * v_scale_h + f * v_scale_s)
            p *= 64.0 * tl.load(p_s + key * v_scale_s, mask=m_key, other=0.0)[None, :]
        b_v = _rows(p_v, b * v_b + h * v_h + f * v_s, batch, first, head * HEAD_DIM, key, d, m_kv,
                    v_s, v_d, BLOCK_N, BLOCK_D, DESCRIPTORS).to(b_q.dtype)  # fmt: skip
        acc = tl.dot(p.to(b_q.dtype), b_v, acc * shrink[:, None], input_precision="ieee")

    some = total > 0.0
    total = tl.where(some, total, 1.0)
    acc /= (total * 64.0 if INT8 else total)[:, None]
    if SPLIT:
        o_part = (pair.to(tl.int64) * tl.num_programs(1) + split) * n_queries + position
        tl.store(p_part + o_part[:, None] * HEAD_DIM + d[None, :], acc, mask=m_q)
        lse = tl.where(some, top + tl.log2(total), -float("inf"))
        tl.store(p_lse + o_part, lse, mask=m_row)
    else:
        o_out = b * out_b + h * out_h + row[:, None] * out_s + d[None, :] * out_d
        tl.store(p_out + o_out, acc.to(p_out.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "splits", "index_b"])
def _reduce(
    p_part, p_lse, p_out, p_index, n_queries, n_keys, heads, splits,
    out_b, out_s, out_h, out_d, index_b,
    INDEX: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(n_queries, BLOCK_M)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    batch, head = pair // heads, pair % heads
    position = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    m_row = position < n_queries
    if INDEX:
        row, m_row = checked_row(p_index + batch * index_b, position, m_row, n_keys)
    else:
        row = position.to(tl.int64)
    d = tl.arange(0, BLOCK_D)[None, :]
    m_out = m_row[:, None] & (d < HEAD_DIM)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        o_part = (pair * splits + split) * n_queries + position
        lse = tl.load(p_lse + o_part, mask=m_row, other=-float("inf"))
        b_part = tl.load(p_part + o_part[:, None] * HEAD_DIM + d, mask=m_out, other=0.0)
        new_top = tl.maximum(top, lse)
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        shrink, weight = tl.exp2(top - shift), tl.exp2(lse - shift)
        acc = acc * shrink[:, None] + b_part * weight[:, None]
        total = total * shrink + weight
        top = new_top
    acc /= tl.where(total > 0.0, total, 1.0)[:, None]
    o_out = batch * out_b + head * out_h + row[:, None] * out_s + d * out_d
    tl.store(p_out + o_out, acc.to(p_out.dtype.element_ty), mask=m_out)


def _describe(x: Tensor, rows: int) -> TensorDescriptor | None:
    """Blocks of `rows` rows of one head; None if the hardware cannot read them by descriptor."""
    b, s, h, d = x.shape
    x_b, x_s, x_h, x_d = x.stride()
    if d != triton.next_power_of_2(d) or d < 16 or (x_h, x_d) != (d, 1):
        return None
    if any(n == 0 or n * x.element_size() % 16 for n in (x_b, x_s)) or x.data_ptr() % 16:
        return None
    return TensorDescriptor(x, [b, s, h * d], [x_b, x_s, 1], [1, rows, d])


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    splits: int,
    out: Tensor,
) -> None:
    b, s, h, d = k.shape
    m = q.shape[1] if index is None else index.shape[-1]
    if m == 0 or q.numel() == 0:
        return
    target, multiprocessors = device_target(q.device)
    tile = choose_tile(target, q.dtype, d, int8=k_scale is not None)
    rows: tuple = (q, k, v)
    plain = index is None and key_mask is None and k_scale is None and q.dtype != torch.float32
    if plain and target in DESCRIPTOR_TILES and TensorDescriptor is not None:
        wide = choose_tile(target, q.dtype, d, descriptors=True)
        described = (_describe(q, wide.m), _describe(k, wide.n), _describe(v, wide.n))
        if None not in described:
            tile, rows = wide, described
    tiles = triton.cdiv(m, tile.m) * b * h
    splits = splits or choose_splits(tiles, s, multiprocessors)
    chunk = triton.cdiv(triton.cdiv(s, splits), tile.n) * tile.n
    splits = triton.cdiv(s, chunk)  # none is empty
    part = lse = None
    if splits > 1:
        part = torch.empty(b * h, splits, m, d, dtype=torch.float32, device=q.device)
        lse = torch.empty(b * h, splits, m, dtype=torch.float32, device=q.device)
    index_b = 0 if index is None or index.ndim == 1 else index.stride(0)
    head = {"HEAD_DIM": d, "BLOCK_D": max(16, triton.next_power_of_2(d))}
    with launch_device(q):
        _attend[(tiles, splits)](
            *rows, out, index, key_mask, k_scale, v_scale, part, lse,
            scale * math.log2(math.e), m, s, h, chunk,
            *(stride for x in (q, k, v, out) for stride in x.stride()), index_b,
            *((0, 0) if key_mask is None else key_mask.stride()),
            *((0, 0, 0) if k_scale is None else k_scale.stride()),
            *((0, 0, 0) if v_scale is None else v_scale.stride()),
            INDEX=index is not None, KEY_MASK=key_mask is not None, INT8=k_scale is not None,
            SPLIT=splits > 1, DESCRIPTORS=rows[0] is not q, **head,
            BLOCK_M=tile.m, BLOCK_N=tile.n, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if splits > 1:
            _reduce[(triton.cdiv(m, REDUCE_ROWS) * b * h,)](
                part, lse, out, index, m, s, h, splits, *out.stride(), index_b,
                INDEX=index is not None, **head, BLOCK_M=REDUCE_ROWS, num_warps=REDUCE_WARPS,
            )  # fmt: skip


# Both ops are opaque to torch.compile. The number of parts of the keys depends on M: if the
# launcher were traced, torch.compile would guard on M and make a new graph for nearly every value.
# And a tensor descriptor needs an address, which a traced tensor does not have.
@custom_op("spotedit::gathered_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    splits: int,
) -> Tensor:
    new = torch.empty if index is None else torch.zeros
    out = new(q.shape, dtype=q.dtype, device=q.device)
    _launch(q, k, v, index, key_mask, k_scale, v_scale, scale, splits, out)
    return out


@_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@custom_op("spotedit::gathered_attention_out", mutates_args={"out"})
def _op_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    scale: float,
    splits: int,
    out: Tensor,
) -> None:
    """A second op, because a registered one may not return the tensor that it was given."""
    _launch(q, k, v, index, key_mask, k_scale, v_scale, scale, splits, out)


@_op_out.register_fake
def _(*_: object) -> None:
    """Return nothing: `out` is written in place."""


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    kv_scales: tuple[Tensor, Tensor] | None,
    scale: float | None,
    out: Tensor | None,
    splits: int = 0,
) -> Tensor:
    """As the reference; `splits` > 0 fixes the parts of the keys, 0 chooses."""
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if scale < 0:
        q, scale = -q, -scale
    scale = max(scale, 1e-30)  # the kernel scales after taking the maximum: not 0
    if index is not None and index.stride(-1) != 1:
        index = index.contiguous()
    k_scale, v_scale = kv_scales or (None, None)
    options = (index, key_mask, k_scale, v_scale, scale, splits)
    if out is None:
        return torch.ops.spotedit.gathered_attention(q, k, v, *options)
    torch.ops.spotedit.gathered_attention_out(q, k, v, *options, out)
    return out
