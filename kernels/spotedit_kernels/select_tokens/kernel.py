"""Selection in up to three kernels: each image's cut, its active tokens, and their list.

The first kernel runs only where there is no threshold.

Names in the kernels: ``p_`` pointer, ``m_`` mask, ``b_`` tile; ``stride_scores_b`` is the stride of
the scores along the batch. Tiles and masks have the shape [X], with X = BLOCK tokens of one image.
Along the tokens all strides are 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from .._ops import add_op_namespace_prefix, ops
from ..primitives import launch_device, wrap_triton
from .reference import ITERATIONS

CUT_BLOCK, CUT_WARPS = 1024, 8
MARK_BLOCK, MARK_WARPS = 256, 4
LIST_BLOCK, LIST_WARPS = 2048, 8


@triton.jit(do_not_specialize=["num_tokens"])
def _cut(
    p_scores, p_cut, num_tokens, stride_scores_b, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr
):
    """Find one image's two-means cut; it is -inf if the two clusters do not separate.

    The low cluster holds the finite scores up to the cut, the high cluster those above it.
    """
    batch = tl.program_id(0).to(tl.int64)
    p_scores += batch * stride_scores_b

    # Iterate. The first cut is below every score, so the second cut is the mean of all scores
    cut = float("-inf")
    width = 0.0
    for _ in range(1 + ITERATIONS):
        # Sums and sizes of the two clusters
        b_low = tl.zeros([BLOCK], dtype=tl.float32)
        b_high = tl.zeros([BLOCK], dtype=tl.float32)
        b_num_low = tl.zeros([BLOCK], dtype=tl.int32)
        b_num_high = tl.zeros([BLOCK], dtype=tl.int32)
        for i in range(0, tl.cdiv(num_tokens, BLOCK)):
            token = i * BLOCK + tl.arange(0, BLOCK)
            b_score = tl.load(p_scores + token, mask=token < num_tokens, other=float("inf"))
            m_finite = tl.abs(b_score) < float("inf")
            m_high = m_finite & (b_score > cut)
            m_low = m_finite & ~m_high
            b_low += tl.where(m_low, b_score, 0.0)
            b_high += tl.where(m_high, b_score, 0.0)
            b_num_low += m_low.to(tl.int32)
            b_num_high += m_high.to(tl.int32)
        sum_low, sum_high = tl.sum(b_low, 0), tl.sum(b_high, 0)
        num_low, num_high = tl.sum(b_num_low, 0), tl.sum(b_num_high, 0)

        # The next cut lies midway between the means; with one cluster it is the mean
        has_both = tl.minimum(num_low, num_high) > 0
        mean_low = sum_low / tl.maximum(num_low, 1).to(tl.float32)
        mean_high = sum_high / tl.maximum(num_high, 1).to(tl.float32)
        mean = (sum_low + sum_high) / tl.maximum(num_low + num_high, 1).to(tl.float32)
        cut = tl.where(has_both, 0.5 * (mean_low + mean_high), mean)
        width = tl.where(has_both, 0.25 * (mean_high - mean_low), 0.0)

    # Keep the cut only if few scores lie near it
    b_num_low = tl.zeros([BLOCK], dtype=tl.int32)
    b_num_high = tl.zeros([BLOCK], dtype=tl.int32)
    b_num_near = tl.zeros([BLOCK], dtype=tl.int32)
    for i in range(0, tl.cdiv(num_tokens, BLOCK)):
        token = i * BLOCK + tl.arange(0, BLOCK)
        b_score = tl.load(p_scores + token, mask=token < num_tokens, other=float("inf"))
        m_finite = tl.abs(b_score) < float("inf")
        m_high = m_finite & (b_score > cut)
        b_num_low += (m_finite & ~m_high).to(tl.int32)
        b_num_high += m_high.to(tl.int32)
        b_num_near += (m_finite & (tl.abs(b_score - cut) <= width)).to(tl.int32)
    num_smaller = tl.minimum(tl.sum(b_num_low, 0), tl.sum(b_num_high, 0))
    is_separate = (num_smaller > 0) & (3 * tl.sum(b_num_near, 0) <= num_smaller)
    tl.store(p_cut + batch, tl.where(is_separate, cut, float("-inf")))


@triton.jit(do_not_specialize=["threshold", "hysteresis", "rows", "cols", "dilation"])
def _mark(
    p_scores, p_cut, p_previous, p_mask, p_active,
    threshold, hysteresis, rows, cols, dilation,
    stride_scores_b, stride_previous_b, stride_mask_b,
    AUTO: tl.constexpr, RULE: tl.constexpr, PREVIOUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write which tokens are active to p_active [B, N]; each token looks at its neighbours.

    AUTO: the cut at p_cut takes the place of the threshold. PREVIOUS: only tokens that were active
    before can be judged active. RULE: the mode of the mask, or "none" without a mask.
    """
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_tokens = rows * cols
    m_token = token < num_tokens
    b_active = tl.zeros([BLOCK], dtype=tl.int1)
    if RULE != "replace":
        # Tokens that join the active set if a neighbour is judged active
        cut = tl.load(p_cut + batch) if AUTO else threshold
        b_score = tl.load(p_scores + batch * stride_scores_b + token, mask=m_token, other=0.0)
        b_share = tl.full([BLOCK], hysteresis, dtype=tl.float32)
        b_least = tl.where(b_share > 0, b_share * cut, float("-inf"))  # 0 * -inf would be NaN
        b_joins = (b_score >= b_least) | ~(tl.abs(b_score) < float("inf"))

        # Judge the neighbours and the token itself, which is active whether or not it may join
        row, col = token // cols, token % cols
        side = 2 * dilation + 1
        for i in range(0, side * side):
            near_row, near_col = row + i // side - dilation, col + i % side - dilation
            m_near = m_token & (near_row >= 0) & (near_row < rows)
            m_near = m_near & (near_col >= 0) & (near_col < cols)
            near = near_row * cols + near_col
            p_near = p_scores + batch * stride_scores_b + near
            b_near_score = tl.load(p_near, mask=m_near, other=0.0)
            b_judged = m_near & ((b_near_score > cut) | ~(tl.abs(b_near_score) < float("inf")))
            if PREVIOUS:
                p_near = p_previous + batch * stride_previous_b + near
                b_judged &= tl.load(p_near, mask=m_near, other=0)
            b_active |= b_judged & (b_joins | (near == token))

    # Apply the user's mask
    if RULE != "none":
        b_allowed = tl.load(p_mask + batch * stride_mask_b + token, mask=m_token, other=0)
        b_active = b_active & b_allowed if RULE == "intersect" else b_active | b_allowed
    tl.store(p_active + batch * num_tokens + token, b_active, mask=m_token)


@triton.jit(do_not_specialize=["num_tokens", "length"])
def _list(p_active, p_index, p_count, num_tokens, length, BLOCK: tl.constexpr):
    """List one image's active tokens in ascending order, then -1 up to `length`."""
    batch = tl.program_id(0).to(tl.int64)
    p_active += batch * num_tokens
    p_index += batch * length

    # `count` tokens are in the list so far, so the next active token goes to that place
    count = 0
    for i in range(0, tl.cdiv(num_tokens, BLOCK)):
        token = i * BLOCK + tl.arange(0, BLOCK)
        b_active = tl.load(p_active + token, mask=token < num_tokens, other=0).to(tl.int32)
        place = count + tl.cumsum(b_active, 0) - 1
        tl.store(p_index + place, token, mask=b_active > 0)
        count += tl.sum(b_active, 0)

    # Pad the rest
    for i in range(0, tl.cdiv(length, BLOCK)):
        place = i * BLOCK + tl.arange(0, BLOCK)
        b_padding = tl.full([BLOCK], -1, dtype=tl.int32)
        tl.store(p_index + place, b_padding, mask=(place >= count) & (place < length))
    tl.store(p_count + batch, count)


@triton_op(add_op_namespace_prefix("select_tokens"), mutates_args=())
def _op(
    scores: Tensor,
    previous: Tensor | None,
    mask: Tensor | None,
    rows: int,
    cols: int,
    threshold: float | None,
    dilation: int,
    hysteresis: float,
    rule: str,
    pad_to: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; the tensors have a stride of 1 along the tokens."""
    batch, num_tokens = scores.shape
    length = triton.cdiv(num_tokens, pad_to) * pad_to
    needs_cut = threshold is None and rule != "replace"
    cut = scores.new_empty(batch) if needs_cut else None
    active = scores.new_empty(batch, num_tokens, dtype=torch.bool)
    index = scores.new_empty(batch, length, dtype=torch.int32)
    count = scores.new_empty(batch, dtype=torch.int32)
    with launch_device(scores):
        if needs_cut:
            wrap_triton(_cut)[(batch,)](
                scores, cut, num_tokens, scores.stride(0),
                ITERATIONS=ITERATIONS, BLOCK=CUT_BLOCK, num_warps=CUT_WARPS,
            )  # fmt: skip
        wrap_triton(_mark)[(triton.cdiv(num_tokens, MARK_BLOCK), batch)](
            scores, cut, previous, mask, active,
            0.0 if threshold is None else threshold, hysteresis, rows, cols, dilation,
            scores.stride(0),
            0 if previous is None else previous.stride(0), 0 if mask is None else mask.stride(0),
            AUTO=needs_cut, RULE=rule, PREVIOUS=previous is not None,
            BLOCK=MARK_BLOCK, num_warps=MARK_WARPS,
        )  # fmt: skip
        wrap_triton(_list)[(batch,)](
            active, index, count, num_tokens, length, BLOCK=LIST_BLOCK, num_warps=LIST_WARPS
        )
    return active, index, count


def select_tokens(
    scores: Tensor,
    grid: tuple[int, int],
    threshold: float | None,
    previous: Tensor | None,
    dilation: int,
    hysteresis: float,
    mask: Tensor | None,
    rule: str,
    pad_to: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the same contract as the reference."""
    rows, cols = grid
    scores = _unit_stride(scores)
    previous = None if previous is None else _unit_stride(previous)
    mask = None if mask is None else _unit_stride(mask)
    return ops.select_tokens(
        scores, previous, mask, rows, cols, threshold, dilation, hysteresis, rule, pad_to
    )


def _unit_stride(x: Tensor) -> Tensor:
    """Return `x` ``[B, N]`` with a stride of 1 along N."""
    return x if x.stride(1) == 1 else x.contiguous()
