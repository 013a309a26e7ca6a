"""Selection in two kernels, or three: the cut of each image, its active set, the list of tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..primitives import launch_device, wrap_triton
from .reference import ITERATIONS

CUT_BLOCK, CUT_WARPS = 1024, 8
MARK_BLOCK, MARK_WARPS = 256, 4
LIST_BLOCK, LIST_WARPS = 2048, 8


@triton.jit(do_not_specialize=["n"])
def _cut(p_scores, p_cut, n, scores_b, ITERATIONS: tl.constexpr, BLOCK: tl.constexpr):
    """One program an image: iterations of the two-means cut, then the guard."""
    batch = tl.program_id(0).to(tl.int64)
    p_scores += batch * scores_b
    cut = float("-inf")  # all above: the next cut is the mean
    width = 0.0
    for _ in range(1 + ITERATIONS):
        b_low = tl.zeros([BLOCK], dtype=tl.float32)
        b_high = tl.zeros([BLOCK], dtype=tl.float32)
        b_n_low = tl.zeros([BLOCK], dtype=tl.int32)
        b_n_high = tl.zeros([BLOCK], dtype=tl.int32)
        for i in range(0, tl.cdiv(n, BLOCK)):
            token = i * BLOCK + tl.arange(0, BLOCK)
            b_score = tl.load(p_scores + token, mask=token < n, other=float("inf"))  # [X]
            finite = tl.abs(b_score) < float("inf")
            above = finite & (b_score > cut)
            below = finite & ~above
            b_low += tl.where(below, b_score, 0.0)
            b_high += tl.where(above, b_score, 0.0)
            b_n_low += below.to(tl.int32)
            b_n_high += above.to(tl.int32)
        low, high = tl.sum(b_low, 0), tl.sum(b_high, 0)
        n_low, n_high = tl.sum(b_n_low, 0), tl.sum(b_n_high, 0)
        both = tl.minimum(n_low, n_high) > 0
        mean_low = low / tl.maximum(n_low, 1).to(tl.float32)
        mean_high = high / tl.maximum(n_high, 1).to(tl.float32)
        mean = (low + high) / tl.maximum(n_low + n_high, 1).to(tl.float32)
        cut = tl.where(both, 0.5 * (mean_low + mean_high), mean)
        width = tl.where(both, 0.25 * (mean_high - mean_low), 0.0)

    b_n_low = tl.zeros([BLOCK], dtype=tl.int32)
    b_n_high = tl.zeros([BLOCK], dtype=tl.int32)
    b_near = tl.zeros([BLOCK], dtype=tl.int32)
    for i in range(0, tl.cdiv(n, BLOCK)):
        token = i * BLOCK + tl.arange(0, BLOCK)
        b_score = tl.load(p_scores + token, mask=token < n, other=float("inf"))
        finite = tl.abs(b_score) < float("inf")
        above = finite & (b_score > cut)
        b_n_low += (finite & ~above).to(tl.int32)
        b_n_high += above.to(tl.int32)
        b_near += (finite & (tl.abs(b_score - cut) <= width)).to(tl.int32)
    smaller = tl.minimum(tl.sum(b_n_low, 0), tl.sum(b_n_high, 0))
    separate = (smaller > 0) & (3 * tl.sum(b_near, 0) <= smaller)
    tl.store(p_cut + batch, tl.where(separate, cut, float("-inf")))


@triton.jit(do_not_specialize=["threshold", "hysteresis", "rows", "cols", "dilation"])
def _mark(
    p_scores, p_cut, p_previous, p_mask, p_active,
    threshold, hysteresis, rows, cols, dilation, scores_b, previous_b, mask_b,
    AUTO: tl.constexpr, RULE: tl.constexpr, PREVIOUS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The active set [B, N]: each program reads the neighbours of its tokens."""
    batch = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [X]
    n = rows * cols
    m_token = token < n
    active = tl.zeros([BLOCK], dtype=tl.int1)
    if RULE != "replace":
        cut = tl.load(p_cut + batch) if AUTO else threshold
        b_own = tl.load(p_scores + batch * scores_b + token, mask=m_token, other=0.0)
        share = tl.full([BLOCK], hysteresis, dtype=tl.float32)
        least = tl.where(share > 0, share * cut, float("-inf"))  # 0 * -inf would be NaN
        joins = (b_own >= least) | ~(tl.abs(b_own) < float("inf"))  # where a neighbour is judged
        row, col = token // cols, token % cols
        side = 2 * dilation + 1
        for i in range(0, side * side):
            r, c = row + i // side - dilation, col + i % side - dilation
            m_near = m_token & (r >= 0) & (r < rows) & (c >= 0) & (c < cols)
            near = r * cols + c
            b_score = tl.load(p_scores + batch * scores_b + near, mask=m_near, other=0.0)
            judged = m_near & ((b_score > cut) | ~(tl.abs(b_score) < float("inf")))
            if PREVIOUS:
                judged &= tl.load(p_previous + batch * previous_b + near, mask=m_near, other=0)
            active |= judged & (joins | (near == token))
    if RULE != "none":
        allowed = tl.load(p_mask + batch * mask_b + token, mask=m_token, other=0)
        active = active & allowed if RULE == "intersect" else active | allowed
    tl.store(p_active + batch * n + token, active, mask=m_token)


@triton.jit(do_not_specialize=["n", "length"])
def _list(p_active, p_index, p_count, n, length, BLOCK: tl.constexpr):
    """One program an image: its active tokens, ascending, then -1 up to `length`."""
    batch = tl.program_id(0).to(tl.int64)
    p_active += batch * n
    p_index += batch * length
    count = 0
    for i in range(0, tl.cdiv(n, BLOCK)):
        token = i * BLOCK + tl.arange(0, BLOCK)
        found = tl.load(p_active + token, mask=token < n, other=0).to(tl.int32)
        place = count + tl.cumsum(found, 0) - 1
        tl.store(p_index + place, token, mask=found > 0)
        count += tl.sum(found, 0)
    for i in range(0, tl.cdiv(length, BLOCK)):
        place = i * BLOCK + tl.arange(0, BLOCK)
        padding = tl.full([BLOCK], -1, dtype=tl.int32)
        tl.store(p_index + place, padding, mask=(place >= count) & (place < length))
    tl.store(p_count + batch, count)


@triton_op("spotedit::select_tokens", mutates_args=())
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
    batch, n = scores.shape
    length = triton.cdiv(n, pad_to) * pad_to
    automatic = threshold is None and rule != "replace"
    cut = scores.new_empty(batch) if automatic else None
    active = scores.new_empty(batch, n, dtype=torch.bool)
    index = scores.new_empty(batch, length, dtype=torch.int32)
    count = scores.new_empty(batch, dtype=torch.int32)
    with launch_device(scores):
        if automatic:
            wrap_triton(_cut)[(batch,)](
                scores, cut, n, scores.stride(0),
                ITERATIONS=ITERATIONS, BLOCK=CUT_BLOCK, num_warps=CUT_WARPS,
            )  # fmt: skip
        wrap_triton(_mark)[(triton.cdiv(n, MARK_BLOCK), batch)](
            scores, cut, previous, mask, active,
            0.0 if threshold is None else threshold, hysteresis, rows, cols, dilation,
            scores.stride(0),
            0 if previous is None else previous.stride(0), 0 if mask is None else mask.stride(0),
            AUTO=automatic, RULE=rule, PREVIOUS=previous is not None,
            BLOCK=MARK_BLOCK, num_warps=MARK_WARPS,
        )  # fmt: skip
        wrap_triton(_list)[(batch,)](
            active, index, count, n, length, BLOCK=LIST_BLOCK, num_warps=LIST_WARPS
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
    """As the reference."""
    previous, mask = (None if x is None else _dense(x) for x in (previous, mask))
    return torch.ops.spotedit.select_tokens(
        _dense(scores), previous, mask, *grid, threshold, dilation, hysteresis, rule, pad_to
    )


def _dense(rows: Tensor) -> Tensor:
    """`rows` ``[B, N]`` with a stride of 1 along N."""
    return rows if rows.stride(1) == 1 else rows.contiguous()
