"""A layer's whole cached path in a spot step, against the same in plain PyTorch, not fused.

``eager-unfused`` keeps what the method needs in the obvious form: keys without their rotation.
Each step it indexes the reused rows, blends them, concatenates prompt, active, reused and condition
rows, rotates all keys in fp32 and attends. The lists of rows and the tables in their order are made
once a step, so they are not charged to it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels import gathered_attention, kv_blend, qk_norm_rope
from torch import Tensor

from .cases import EPS, Case, Convert, Inputs, Tensors, spread
from .shapes import Layer

WEIGHT = 0.3  # of the cached keys and values in the blend


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved pairs of `x` ``[1, M, H, D]`` by tables ``[M, D]``, in fp32 (fp64 for fp64)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-b, a], -1).flatten(-2)
    cos, sin = cos[:, None], sin[:, None]
    return (x.to(cos.dtype) * cos + turned.to(cos.dtype) * sin).to(x.dtype)


def norm(x: Tensor, text: Tensor, weight: Tensor, prompt: int) -> Tensor:
    """RMSNorm of ``[1, M, H, D]``, with a weight of its own for the first `prompt` rows."""
    shape = weight.shape
    parts = (
        F.rms_norm(x[:, :prompt], shape, text, EPS),
        F.rms_norm(x[:, prompt:], shape, weight, EPS),
    )
    return torch.cat(parts, 1)


def path(layer: Layer, m: int, attend: bool, at: dict[str, Any], inputs: Inputs) -> Case:
    """The case; without `attend`, everything up to the attention."""
    p, n, heads, dim = layer.prompt, layer.noise, layer.heads, layer.dim
    shape = layer.attention(m)
    order, prompt = inputs.order(n), torch.arange(p, device=inputs.device)
    active, reused = order[: m - p], order[m - p :]
    slots = torch.cat([prompt, p + active])
    joint = torch.cat([slots, p + reused, p + n + torch.arange(n, device=inputs.device)])
    rows = [inputs.normal(1, m, heads, dim) for _ in range(3)]  # q, k, v of the step
    old = [inputs.normal(1, n, heads, dim) for _ in range(4)]  # k, v of noise, then of condition
    weights = list(inputs.normal(4, dim))  # text q, q, text k, k
    tables = inputs.tables(shape.s, dim)
    ordered = [table[joint] for table in tables]

    def unfused(
        rows: list[Tensor], old: list[Tensor], weights: list[Tensor], ordered: list[Tensor],
        picked: Tensor | None = None,
    ) -> Tensors:  # fmt: skip
        q, k = norm(rows[0], *weights[:2], p), norm(rows[1], *weights[2:], p)
        (k_old, v_old, k_source, v_source), v = old, rows[2]
        k_reused, v_reused = (
            WEIGHT * x[:, reused] + (1 - WEIGHT) * y[:, reused]
            for x, y in ((k_old, k_source), (v_old, v_source))
        )
        keys = torch.cat([k[:, :p], k[:, p:], k_reused, k_source], 1)
        values = torch.cat([v[:, :p], v[:, p:], v_reused, v_source], 1)
        q = rotate(q, *(table[:m] for table in ordered))
        keys = rotate(keys, *ordered)
        if not attend:
            return q, keys, values
        q = q if picked is None else q[:, picked]
        tensors = (x.transpose(1, 2) for x in (q, keys, values))
        return (F.scaled_dot_product_attention(*tensors).transpose(1, 2),)

    noise, source = (slice(p + i * n, p + (i + 1) * n) for i in range(2))
    k_cached, k_ref = (rotate(x, *(t[noise] for t in tables)) for x in (old[0], old[2]))
    k_joint, v_joint = (
        torch.full((1, shape.s, heads, dim), torch.nan, dtype=inputs.dtype, device=inputs.device)
        for _ in range(2)
    )
    k_joint[:, source], v_joint[:, source] = rotate(old[2], *(t[source] for t in tables)), old[3]
    cos, sin = (table[slots][None] for table in tables)

    def ours(impl: Any) -> Tensors:
        q = qk_norm_rope(
            *rows, k_joint, v_joint, slots, cos, sin, text_len=p, eps=EPS, interleaved=True,
            text_q_weight=weights[0], q_weight=weights[1], text_k_weight=weights[2],
            k_weight=weights[3], impl=impl,
        )  # fmt: skip
        kv_blend(
            k_joint[:, noise], v_joint[:, noise], k_cached, old[1], k_ref, v_joint[:, source],
            reused, weight=WEIGHT, impl=impl,
        )  # fmt: skip
        return (gathered_attention(q, k_joint, v_joint, impl=impl) if attend else q,)

    picked = spread(m, inputs.device)

    def expected(convert: Convert) -> Tensors:
        wide = [[convert(x) for x in part] for part in (rows, old, weights, ordered)]
        return unfused(*wide, picked if attend else None)

    def read(result: Tensors) -> Tensors:
        if attend:
            return (result[0][:, picked],)
        if len(result) == 3:
            return result
        return result[0], k_joint[:, joint], v_joint[:, joint]

    calls: dict[str, Callable[[], Tensors]] = {
        impl: partial(ours, impl) for impl in inputs.implementations("auto")
    }
    calls["eager-unfused"] = partial(unfused, rows, old, weights, ordered)
    row = float(rows[0].nbytes / m)
    moved = row * (6 * m + 6 * (n - m + p)) + (2 * row * (m + shape.s) if attend else 0)
    count = heads * dim
    flops = 14.0 * m * count + 6.0 * (n - m + p) * count
    if attend:
        flops += 4.0 * m * shape.s * count
    op = "layer" if attend else "layer without attention"
    return Case(
        op, at | shape.columns, calls, read, expected, inputs.dtype, flops, moved,
        "matmul" if attend else "copy",
        lambda: [x[:, : p + n].fill_(torch.nan) for x in (k_joint, v_joint)],
    )  # fmt: skip
