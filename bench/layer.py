"""Define the case of a layer's whole cached path in a spot step, against plain PyTorch operations.

The baseline ``eager-unfused`` keeps what the method needs in the obvious form: unrotated keys. In
each step it indexes the reused rows, blends them, concatenates the rows of prompt, active, reused
and condition tokens, rotates all keys in fp32, and attends. The index lists and the tables in that
order are made once a step, so its time does not include them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels import gathered_attention, kv_blend, qk_norm_rope
from torch import Tensor

from .cases import EPS, Case, Convert, Inputs, Tensors, checked_rows
from .shapes import Layer

WEIGHT = 0.3  # of the cached keys and values in the blend


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of `x` ``[1, M, H, D]`` by tables ``[M, D]``, in their dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    cos, sin = cos[:, None], sin[:, None]
    return (x.to(cos.dtype) * cos + turned.to(cos.dtype) * sin).to(x.dtype)


def norm(x: Tensor, text_weight: Tensor, weight: Tensor, num_prompt: int) -> Tensor:
    """Apply the RMSNorm to ``[1, M, H, D]``; the first `num_prompt` rows have `text_weight`."""
    shape = weight.shape
    parts = (
        F.rms_norm(x[:, :num_prompt], shape, text_weight, EPS),
        F.rms_norm(x[:, num_prompt:], shape, weight, EPS),
    )
    return torch.cat(parts, 1)


def path(layer: Layer, m: int, attend: bool, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case with `m` query rows; without `attend` the path ends before the attention."""
    p, n, heads, dim = layer.num_prompt, layer.num_noise, layer.heads, layer.dim
    shape = layer.attention(m)
    noise, source = slice(p, p + n), slice(p + n, p + 2 * n)  # in the joint sequence
    order, prompt = inputs.permutation(n), torch.arange(p, device=inputs.device)
    active, reused = order[: m - p], order[m - p :]
    slots = torch.cat([prompt, p + active])
    condition = p + n + torch.arange(n, device=inputs.device)
    joint = torch.cat([slots, p + reused, condition])
    rows = [inputs.normal(1, m, heads, dim) for _ in range(3)]  # q, k, v of the step
    cached = [inputs.normal(1, n, heads, dim) for _ in range(4)]  # k, v of noise, of condition
    weights = list(inputs.normal(4, dim))  # text q, q, text k, k
    tables = inputs.tables(shape.s, dim)
    joint_tables = [table[joint] for table in tables]

    def unfused(
        rows: list[Tensor], cached: list[Tensor], weights: list[Tensor], tables: list[Tensor],
        checked: Tensor | None = None,
    ) -> Tensors:  # fmt: skip
        q, k = norm(rows[0], *weights[:2], p), norm(rows[1], *weights[2:], p)
        v = rows[2]
        k_cached, v_cached, k_source, v_source = cached
        k_reused, v_reused = (
            WEIGHT * x[:, reused] + (1 - WEIGHT) * y[:, reused]
            for x, y in ((k_cached, k_source), (v_cached, v_source))
        )
        keys = torch.cat([k[:, :p], k[:, p:], k_reused, k_source], 1)
        values = torch.cat([v[:, :p], v[:, p:], v_reused, v_source], 1)
        q = rotate(q, *(table[:m] for table in tables))
        keys = rotate(keys, *tables)
        if not attend:
            return q, keys, values
        if checked is not None:
            q = q[:, checked]
        tensors = (x.transpose(1, 2) for x in (q, keys, values))
        return (F.scaled_dot_product_attention(*tensors).transpose(1, 2),)

    # our caches hold rotated keys
    k_cached, k_ref = (rotate(x, *(t[noise] for t in tables)) for x in (cached[0], cached[2]))
    k_joint, v_joint = (
        torch.full((1, shape.s, heads, dim), torch.nan, dtype=inputs.dtype, device=inputs.device)
        for _ in range(2)
    )
    k_joint[:, source] = rotate(cached[2], *(t[source] for t in tables))
    v_joint[:, source] = cached[3]
    cos, sin = (table[slots][None] for table in tables)

    def ours(impl: Any) -> Tensors:
        q = qk_norm_rope(
            *rows, k_joint, v_joint, slots, cos, sin, text_len=p, eps=EPS, interleaved=True,
            text_q_weight=weights[0], q_weight=weights[1], text_k_weight=weights[2],
            k_weight=weights[3], impl=impl,
        )  # fmt: skip
        kv_blend(
            k_joint[:, noise], v_joint[:, noise], k_cached, cached[1], k_ref, v_joint[:, source],
            reused, weight=WEIGHT, impl=impl,
        )  # fmt: skip
        return (gathered_attention(q, k_joint, v_joint, impl=impl) if attend else q,)

    checked = checked_rows(m, inputs.device)

    def expected(convert: Convert) -> Tensors:
        groups = [[convert(x) for x in group] for group in (rows, cached, weights, joint_tables)]
        return unfused(*groups, checked if attend else None)

    def read(result: Tensors) -> Tensors:
        if attend:
            return (result[0][:, checked],)
        if len(result) == 3:  # the unfused path returns its keys and values
            return result
        return result[0], k_joint[:, joint], v_joint[:, joint]

    def forget() -> None:
        for x in (k_joint, v_joint):
            x[:, : p + n].fill_(torch.nan)

    calls: dict[str, Callable[[], Tensors]] = {
        impl: partial(ours, impl) for impl in inputs.implementations("auto")
    }
    calls["eager-unfused"] = partial(unfused, rows, cached, weights, joint_tables)
    row_bytes, row_size = float(rows[0].nbytes / m), heads * dim
    moved = row_bytes * (6 * m + 6 * reused.numel())
    flops = 14.0 * m * row_size + 6.0 * reused.numel() * row_size
    if attend:
        moved += 2 * row_bytes * (m + shape.s)
        flops += 4.0 * m * shape.s * row_size
    return Case(
        "layer" if attend else "layer without attention", parameters | shape.columns,
        calls, read, expected, inputs.dtype, flops, moved,
        ceiling="matmul" if attend else "copy", before=forget,
    )  # fmt: skip
