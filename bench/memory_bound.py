"""The operations whose speed is that of memory, as measured."""

from collections.abc import Callable
from typing import Any

import torch
from spotedit_kernels import (
    kv_blend,
    latent_distance,
    qk_norm_rope,
    select_tokens,
    token_distance,
)
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

from .cases import EPS, Case, Convert, Inputs, Tensors, by_name
from .shapes import LATENT_CHANNELS, Layer, Rows


def rope(layer: Layer, m: int | None, at: dict[str, Any], inputs: Inputs) -> Case:
    """`m` scattered rows of a spot step; None: a full step, which also fills `k_ref`."""
    s = layer.attention(0).s
    shape = layer.attention(s if m is None else m)
    heads, dim = shape.heads, shape.dim
    q, k, v = (inputs.normal(1, shape.m, heads, dim) for _ in range(3))
    weights = inputs.normal(4, dim)
    cos, sin = inputs.tables(shape.m, dim)
    tables: Tensors = (cos, sin) if m is None else (cos[None], sin[None])
    ref = inputs.tables(layer.noise, dim) if m is None else ()
    slots = None
    if m is not None:
        noise = layer.prompt + inputs.order(layer.noise)[: m - layer.prompt]
        slots = torch.cat([torch.arange(layer.prompt, device=inputs.device), noise])

    def written(dtype: torch.dtype) -> Tensors:
        sizes = (s, s, layer.noise) if m is None else (s, s)
        return tuple(torch.full((1, n, heads, dim), torch.nan, dtype=dtype, device=inputs.device)
                     for n in sizes)  # fmt: skip

    def run(op: Callable[..., Tensor], rows: Tensors, out: Tensors, tables: Tensors,
            ref: Tensors, weights: Tensor, impl: str) -> Tensors:  # fmt: skip
        names = ("q_weight", "k_weight", "text_q_weight", "text_k_weight")
        extra = dict(zip(("k_ref", "cos_ref", "sin_ref"), (*out[2:], *ref), strict=False))
        result = op(
            *rows, *out[:2], slots, *tables, text_len=layer.prompt, eps=EPS, interleaved=True,
            impl=impl, **dict(zip(names, weights, strict=True)), **extra,
        )  # fmt: skip
        return (result, *out)

    def read(result: Tensors) -> Tensors:
        if slots is None:
            return result
        return result[0], result[1][:, slots], result[2][:, slots]

    def expected(convert: Convert) -> Tensors:
        wide = [tuple(convert(x) for x in part) for part in ((q, k, v), tables, ref)]
        out = written(wide[0][0].dtype)
        return read(run(qk_norm_rope, wide[0], out, *wide[1:], convert(weights), "reference"))

    calls = by_name(run, qk_norm_rope, inputs.implementations(*inputs.baselines),
                    (q, k, v), written(inputs.dtype), tables, ref, weights)  # fmt: skip
    moved = 6.0 * q.nbytes + 2 * cos.nbytes
    if m is None:
        moved += q.nbytes * layer.noise / s + 2 * ref[0].nbytes
    return Case("qk_norm_rope", at | shape.columns, calls, read, expected, inputs.dtype,
                14.0 * q.numel(), moved, "copy")  # fmt: skip


def blend(layer: Layer, m: int, at: dict[str, Any], inputs: Inputs) -> Case:
    """The reused noise tokens' rows of a spot step with `m` rows, in random order."""
    rows = [inputs.normal(1, layer.noise, layer.heads, layer.dim) for _ in range(4)]
    reused = inputs.order(layer.noise)[m - layer.prompt :]

    def run(op: Callable[..., None], out: list[Tensor], rows: list[Tensor], impl: str) -> Tensors:
        op(*out, *rows, reused, weight=0.3, impl=impl)
        return tuple(out)

    def read(result: Tensors) -> Tensors:
        return tuple(x[:, reused] for x in result)

    def expected(convert: Convert) -> Tensors:
        wide = [convert(x) for x in rows]
        return read(run(kv_blend, [torch.empty_like(x) for x in wide[:2]], wide, "reference"))

    out = [torch.empty_like(x) for x in rows[:2]]
    calls = by_name(run, kv_blend, inputs.implementations(*inputs.baselines), out, rows)
    shape = Rows(reused.numel(), layer.noise, layer.heads, layer.dim)
    count = shape.m * shape.heads * shape.dim
    return Case(
        "kv_blend", at | shape.columns, calls, read, expected, inputs.dtype,
        6.0 * count, 6.0 * count * rows[0].element_size(), "copy",
    )  # fmt: skip


def distance(layer: Layer, at: dict[str, Any], inputs: Inputs) -> Case:
    """A picture's maps against those of the source, which were normalised once."""
    x, y = ([inputs.normal(1, *size) for size in layer.maps] for _ in range(2))
    y = list(normalise_features(y))  # fp32

    def run(op: Callable[..., Tensor], x: list[Tensor], y: list[Tensor], impl: str) -> Tensors:
        return (op(x, y, layer.grid, y_normalised=True, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        wide = ([convert(a) for a in maps] for maps in (x, y))
        return run(token_distance, *wide, "reference")

    elements = sum(a.numel() for a in x)
    return Case(
        "token_distance", at | {"S": layer.noise},
        by_name(run, token_distance, inputs.implementations(*inputs.baselines), x, y),
        lambda result: result, expected, inputs.dtype,
        6.0 * elements, float(sum(a.nbytes for a in (*x, *y))), "copy",
    )  # fmt: skip


def latents(layer: Layer, at: dict[str, Any], inputs: Inputs) -> Case:
    """A step's clean latents, predicted from its velocity, against those of the source."""
    rows = [inputs.normal(1, layer.noise, LATENT_CHANNELS) for _ in range(3)]

    def run(op: Callable[..., Tensor], rows: list[Tensor], impl: str) -> Tensors:
        x, y, velocity = rows
        return (op(x, y, velocity=velocity, sigma=0.3, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        return run(latent_distance, [convert(x) for x in rows], "reference")

    return Case(
        "latent_distance", at | {"S": layer.noise, "C": LATENT_CHANNELS},
        by_name(run, latent_distance, inputs.implementations(*inputs.baselines), rows),
        lambda result: result, expected, inputs.dtype,
        5.0 * rows[0].numel(), float(sum(x.nbytes for x in rows)), "copy",
    )  # fmt: skip


def select(layer: Layer, threshold: float | None, at: dict[str, Any], inputs: Inputs) -> Case:
    """A tenth of the tokens changed, far from the others."""
    noise = inputs.normal(2, 1, layer.noise, dtype=torch.float32)
    scores = noise[0].sigmoid() + 3.0 * (noise[1] > 1.28)

    def run(op: Callable[..., Tensors], impl: str) -> Tensors:
        return op(scores, layer.grid, threshold=threshold, dilation=1, pad_to=128, impl=impl)

    rule = "two means" if threshold is None else "threshold"
    return Case(
        "select_tokens", at | {"S": layer.noise, "rule": rule},
        by_name(run, select_tokens, inputs.implementations(*inputs.baselines)),
        lambda result: result, lambda convert: run(select_tokens, "reference"), torch.float32,
        0.0, 9.0 * layer.noise, "",  # fp32 scores in; flags and an int32 index out
    )  # fmt: skip
