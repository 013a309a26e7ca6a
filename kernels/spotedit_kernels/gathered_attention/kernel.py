"""Flash attention of gathered query rows, with a split of the keys over programs where it helps.

Names in the kernels begin with ``p_`` for a pointer, ``o_`` for an offset, ``m_`` for a mask and
``b_`` for a tile (block). ``stride_qs`` is the stride of the tensor q along the axis s. The tensors
are q, k, v and o (out). The axes are b (batch), s (rows of the joint sequence), h (heads) and d
(channels of a head). Shapes: M = BLOCK_M queries, N = BLOCK_N keys, D = BLOCK_D channels; b_q and
b_acc [M, D], b_k and b_v [N, D], b_logits and b_p [M, N].
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import checked_row, launch_device
from .plan import DESCRIPTOR_TILES, choose_splits, choose_tile, device_target

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

REDUCE_ROWS, REDUCE_WARPS = 16, 4


@triton.jit
def _load_rows(
    p_x, o_x, batch, first, column, row, d, mask, stride_xs, stride_xd,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Load a tile [N, D] of one head of x.

    Without DESCRIPTORS, p_x is a pointer, and batch, first and column are not used. The tile has
    the rows `row`, counted from the offset o_x, and is 0 outside the mask.

    With DESCRIPTORS, p_x is a tensor descriptor of x as [B, S, H * D], and only batch, first and
    column are used. The tile has N rows from the row `first` on and the channels from `column` on,
    and is 0 outside x.
    """
    if DESCRIPTORS:
        b_x = p_x.load([batch, first, column]).reshape([BLOCK_N, BLOCK_D])
    else:
        p_x += o_x
        p_tile = p_x + row[:, None] * stride_xs + d[None, :] * stride_xd
        b_x = tl.load(p_tile, mask=mask, other=0.0)
    return b_x


@triton.jit(do_not_specialize=[
    "num_queries", "num_keys", "keys_per_split",
    "stride_index_b", "stride_mask_b", "stride_k_scale_b", "stride_v_scale_b",
])  # fmt: skip
def _attend(
    p_q, p_k, p_v, p_out, p_index, p_mask, p_k_scale, p_v_scale, p_partial, p_lse,
    scale, num_queries, num_keys, num_heads, keys_per_split,
    stride_qb, stride_qs, stride_qh, stride_qd, stride_kb, stride_ks, stride_kh, stride_kd,
    stride_vb, stride_vs, stride_vh, stride_vd, stride_ob, stride_os, stride_oh, stride_od,
    stride_index_b, stride_mask_b, stride_mask_s,
    stride_k_scale_b, stride_k_scale_s, stride_k_scale_h,
    stride_v_scale_b, stride_v_scale_s, stride_v_scale_h,
    INDEX: tl.constexpr, KEY_MASK: tl.constexpr, INT8: tl.constexpr, SPLIT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend with M queries of one head to one partition of the keys.

    `scale` includes log2(e), because the softmax is computed with powers of 2. Without SPLIT the
    program writes to p_out; with it, to p_partial and p_lse, which `_reduce` merges.
    """
    # Find this program's queries, head and partition of the keys
    num_tiles = tl.cdiv(num_queries, BLOCK_M)
    batch_head, split = tl.program_id(0) // num_tiles, tl.program_id(1)
    batch32, head32 = batch_head // num_heads, batch_head % num_heads
    batch, head = batch32.to(tl.int64), head32.to(tl.int64)
    start = tl.program_id(0) % num_tiles * BLOCK_M
    position = start + tl.arange(0, BLOCK_M)  # [M]
    m_row = position < num_queries
    if INDEX:
        row, m_row = checked_row(p_index + batch * stride_index_b, position, m_row, num_keys)
    else:
        row = position.to(tl.int64)

    # Load the queries
    d = tl.arange(0, BLOCK_D)
    m_d = (d < HEAD_DIM)[None, :]
    m_q = m_row[:, None] & m_d
    b_q = _load_rows(
        p_q, batch * stride_qb + head * stride_qh, batch32, start, head32 * HEAD_DIM,
        row, d, m_q, stride_qs, stride_qd, BLOCK_M, BLOCK_D, DESCRIPTORS,
    )  # fmt: skip

    # Online softmax: the maximum (of the scaled logits), the sum and the result so far
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    running_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    low = split * keys_per_split
    high = tl.minimum(low + keys_per_split, num_keys)
    for first in range(low, high, BLOCK_N):
        # `key` counts from `first`, so that the offsets inside a tile fit 32 bits
        first64 = tl.cast(first, tl.int64)
        key = tl.arange(0, BLOCK_N)  # [N]
        m_key = key < high - first
        if KEY_MASK:
            p_tile_mask = p_mask + (batch * stride_mask_b + first64 * stride_mask_s)
            m_key &= tl.load(p_tile_mask + key * stride_mask_s, mask=m_key, other=0) != 0
        m_kv = m_key[:, None] & m_d

        # Logits of this tile of keys
        b_k = _load_rows(
            p_k, batch * stride_kb + head * stride_kh + first64 * stride_ks,
            batch32, first, head32 * HEAD_DIM, key, d, m_kv, stride_ks, stride_kd,
            BLOCK_N, BLOCK_D, DESCRIPTORS,
        )  # fmt: skip
        b_logits = tl.dot(b_q, b_k.to(b_q.dtype).T, input_precision="ieee")  # [M, N]
        if INT8:
            o_scale = batch * stride_k_scale_b + head * stride_k_scale_h
            p_tile_scale = p_k_scale + (o_scale + first64 * stride_k_scale_s)
            b_scale = tl.load(p_tile_scale + key * stride_k_scale_s, mask=m_key, other=0.0)  # [N]
            b_logits *= b_scale[None, :]
        b_logits = tl.where(m_key[None, :], b_logits, -float("inf"))

        # Update the maximum; `rescale` converts the sums that were made under the old maximum
        new_max = tl.maximum(running_max, tl.max(b_logits, 1) * scale)
        shift = new_max
        if KEY_MASK:  # -inf - -inf would be NaN where every key so far is masked
            shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        b_p = tl.exp2(b_logits * scale - shift[:, None])
        rescale = tl.exp2(running_max - shift)
        running_max = new_max
        running_sum = running_sum * rescale + tl.sum(b_p, 1)

        # Add the tile's values
        if INT8:
            # Multiply by 64, which is divided out at the end. Otherwise small products would become
            # fp16 subnormals, which have fewer digits.
            o_scale = batch * stride_v_scale_b + head * stride_v_scale_h
            p_tile_scale = p_v_scale + (o_scale + first64 * stride_v_scale_s)
            b_scale = tl.load(p_tile_scale + key * stride_v_scale_s, mask=m_key, other=0.0)  # [N]
            b_p *= 64.0 * b_scale[None, :]
        b_v = _load_rows(
            p_v, batch * stride_vb + head * stride_vh + first64 * stride_vs,
            batch32, first, head32 * HEAD_DIM, key, d, m_kv, stride_vs, stride_vd,
            BLOCK_N, BLOCK_D, DESCRIPTORS,
        ).to(b_q.dtype)  # fmt: skip
        b_acc = tl.dot(b_p.to(b_q.dtype), b_v, b_acc * rescale[:, None], input_precision="ieee")

    # Divide by the sum, and write; a query without any key gets 0
    has_key = running_sum > 0.0
    running_sum = tl.where(has_key, running_sum, 1.0)
    b_acc /= (running_sum * 64.0 if INT8 else running_sum)[:, None]
    if SPLIT:
        o_partial = (batch_head.to(tl.int64) * tl.num_programs(1) + split) * num_queries + position
        tl.store(p_partial + o_partial[:, None] * HEAD_DIM + d[None, :], b_acc, mask=m_q)
        lse = tl.where(has_key, running_max + tl.log2(running_sum), -float("inf"))
        tl.store(p_lse + o_partial, lse, mask=m_row)
    else:
        o_head = batch * stride_ob + head * stride_oh
        o_out = o_head + row[:, None] * stride_os + d[None, :] * stride_od
        tl.store(p_out + o_out, b_acc.to(p_out.dtype.element_ty), mask=m_q)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_splits", "stride_index_b"])
def _reduce(
    p_partial, p_lse, p_out, p_index, num_queries, num_keys, num_heads, num_splits,
    stride_ob, stride_os, stride_oh, stride_od, stride_index_b,
    INDEX: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Merge the partitions' results of M queries of one head, weighted by their softmax sums."""
    num_tiles = tl.cdiv(num_queries, BLOCK_M)
    batch_head = (tl.program_id(0) // num_tiles).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    position = tl.program_id(0) % num_tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # [M]
    m_row = position < num_queries
    if INDEX:
        row, m_row = checked_row(p_index + batch * stride_index_b, position, m_row, num_keys)
    else:
        row = position.to(tl.int64)
    d = tl.arange(0, BLOCK_D)[None, :]
    m_out = m_row[:, None] & (d < HEAD_DIM)

    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    running_max = tl.full([BLOCK_M], -float("inf"), tl.float32)
    running_sum = tl.zeros([BLOCK_M], tl.float32)
    for split in range(num_splits):
        o_partial = (batch_head * num_splits + split) * num_queries + position
        lse = tl.load(p_lse + o_partial, mask=m_row, other=-float("inf"))
        b_partial = tl.load(p_partial + o_partial[:, None] * HEAD_DIM + d, mask=m_out, other=0.0)
        new_max = tl.maximum(running_max, lse)
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # no key so far
        rescale, weight = tl.exp2(running_max - shift), tl.exp2(lse - shift)
        b_acc = b_acc * rescale[:, None] + b_partial * weight[:, None]
        running_sum = running_sum * rescale + weight
        running_max = new_max

    b_acc /= tl.where(running_sum > 0.0, running_sum, 1.0)[:, None]
    o_out = batch * stride_ob + head * stride_oh + row[:, None] * stride_os + d * stride_od
    tl.store(p_out + o_out, b_acc.to(p_out.dtype.element_ty), mask=m_out)


def _describe(x: Tensor, num_rows: int) -> TensorDescriptor | None:
    """Return a descriptor of blocks of `num_rows` rows of one head of `x` ``[B, S, H, D]``.

    It is None if the hardware cannot read such blocks of `x` by descriptor.
    """
    b, s, h, d = x.shape
    stride_b, stride_s, stride_h, stride_d = x.stride()
    if d != triton.next_power_of_2(d) or d < 16:
        return None
    if (stride_h, stride_d) != (d, 1):
        return None
    for stride in (stride_b, stride_s):
        if stride == 0 or stride * x.element_size() % 16:
            return None
    if x.data_ptr() % 16:
        return None
    return TensorDescriptor(x, [b, s, h * d], [stride_b, stride_s, 1], [1, num_rows, d])


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
    """Choose the tile, how to read q, k and v, and the partitions of the keys; then launch.

    If `splits` is 0, the number of partitions is chosen here.
    """
    b, s, h, d = k.shape
    m = q.shape[1] if index is None else index.shape[-1]
    if m == 0 or q.numel() == 0:
        return

    # Read q, k and v by tensor descriptor where the target and their memory layout allow it.
    target, num_multiprocessors = device_target(q.device)
    tile = choose_tile(target, q.dtype, d, int8=k_scale is not None)
    qkv: tuple = (q, k, v)
    uses_descriptors = False
    is_plain = index is None and key_mask is None and k_scale is None
    allows_descriptors = is_plain and q.dtype != torch.float32
    if allows_descriptors and target in DESCRIPTOR_TILES and TensorDescriptor is not None:
        descriptor_tile = choose_tile(target, q.dtype, d, descriptors=True)
        described = (
            _describe(q, descriptor_tile.m),
            _describe(k, descriptor_tile.n),
            _describe(v, descriptor_tile.n),
        )
        uses_descriptors = None not in described
        if uses_descriptors:
            tile, qkv = descriptor_tile, described

    # Partition the keys into whole tiles, so that no partition is empty.
    num_tiles = triton.cdiv(m, tile.m) * b * h
    if splits == 0:
        splits = choose_splits(num_tiles, s, num_multiprocessors)
    keys_per_split = triton.cdiv(triton.cdiv(s, splits), tile.n) * tile.n
    splits = triton.cdiv(s, keys_per_split)
    partial = lse = None
    if splits > 1:
        partial = torch.empty(b * h, splits, m, d, dtype=torch.float32, device=q.device)
        lse = torch.empty(b * h, splits, m, dtype=torch.float32, device=q.device)

    stride_index_b = 0 if index is None or index.ndim == 1 else index.stride(0)
    head_constants = {"HEAD_DIM": d, "BLOCK_D": max(16, triton.next_power_of_2(d))}
    with launch_device(q):
        _attend[(num_tiles, splits)](
            *qkv, out, index, key_mask, k_scale, v_scale, partial, lse,
            scale * math.log2(math.e), m, s, h, keys_per_split,
            *q.stride(), *k.stride(), *v.stride(), *out.stride(), stride_index_b,
            *((0, 0) if key_mask is None else key_mask.stride()),
            *((0, 0, 0) if k_scale is None else k_scale.stride()),
            *((0, 0, 0) if v_scale is None else v_scale.stride()),
            INDEX=index is not None, KEY_MASK=key_mask is not None, INT8=k_scale is not None,
            SPLIT=splits > 1, DESCRIPTORS=uses_descriptors, **head_constants,
            BLOCK_M=tile.m, BLOCK_N=tile.n, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if splits > 1:
            _reduce[(triton.cdiv(m, REDUCE_ROWS) * b * h,)](
                partial, lse, out, index, m, s, h, splits, *out.stride(), stride_index_b,
                INDEX=index is not None, **head_constants, BLOCK_M=REDUCE_ROWS,
                num_warps=REDUCE_WARPS,
            )  # fmt: skip


# Both ops are opaque to torch.compile, for two reasons. The number of partitions depends on M: if
# the launcher were traced, torch.compile would guard on M and make a new graph for nearly every
# value. And a tensor descriptor needs an address, which a traced tensor does not have.
@custom_op(add_op_namespace_prefix("gathered_attention"), mutates_args=())
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
    if index is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    else:
        out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    _launch(q, k, v, index, key_mask, k_scale, v_scale, scale, splits, out)
    return out


@_op.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@custom_op(add_op_namespace_prefix("gathered_attention_out"), mutates_args={"out"})
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
    """Write to `out`. A second op does this, because an op may not return one of its arguments."""
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
    """Take the same arguments and return the same result as `reference.gathered_attention`.

    `splits` is the number of partitions of the keys; 0 chooses it automatically.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    # The kernel scales after it takes the maximum, so the scale must be positive: the sign moves to
    # q, and a scale of 0 becomes a tiny one.
    if scale < 0:
        q, scale = -q, -scale
    scale = max(scale, 1e-30)
    if index is not None and index.stride(-1) != 1:
        index = index.contiguous()
    k_scale, v_scale = kv_scales or (None, None)
    options = (index, key_mask, k_scale, v_scale, scale, splits)
    if out is None:
        return ops.gathered_attention(q, k, v, *options)
    ops.gathered_attention_out(q, k, v, *options, out)
    return out
