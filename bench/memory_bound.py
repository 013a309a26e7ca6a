"""Define the cases of the operations that are limited by the speed of memory."""

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

from .cases import EPS, Case, Convert, Inputs, Tensors, calls_by_name
from .shapes import LATENT_CHANNELS, AttentionShape, Layer


def rope(layer: Layer, m: int | None, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of norm and rotation of `m` scattered rows, as in a spot step.

    None stands for a full step, which also fills `k_ref`.
    """
    s = layer.attention(0).s
    shape = layer.attention(s if m is None else m)
    heads, dim = shape.heads, shape.dim
    q, k, v = (inputs.normal(1, shape.m, heads, dim) for _ in range(3))
    weights = inputs.normal(4, dim)
    cos, sin = inputs.tables(shape.m, dim)
    if m is None:
        slots = None
        tables: Tensors = (cos, sin)
        ref_tables = inputs.tables(layer.num_noise, dim)
        out_rows = (s, s, layer.num_noise)
    else:
        tables, ref_tables = (cos[None], sin[None]), ()
        noise = layer.num_prompt + inputs.permutation(layer.num_noise)[: m - layer.num_prompt]
        slots = torch.cat([torch.arange(layer.num_prompt, device=inputs.device), noise])
        out_rows = (s, s)

    def empty_outputs(dtype: torch.dtype) -> Tensors:
        options = {"dtype": dtype, "device": inputs.device}
        return tuple(torch.full((1, n, heads, dim), torch.nan, **options) for n in out_rows)

    def run(op: Callable[..., Tensor], qkv: Tensors, out: Tensors, tables: Tensors,
            ref_tables: Tensors, weights: Tensor, impl: str) -> Tensors:  # fmt: skip
        k_joint, v_joint, *k_ref = out
        names = ("q_weight", "k_weight", "text_q_weight", "text_k_weight")
        named_weights = dict(zip(names, weights, strict=True))
        ref: dict[str, Any] = {}
        if ref_tables:
            ref = dict(zip(("k_ref", "cos_ref", "sin_ref"), (*k_ref, *ref_tables), strict=True))
        result = op(
            *qkv, k_joint, v_joint, slots, *tables, text_len=layer.num_prompt, eps=EPS,
            interleaved=True, impl=impl, **named_weights, **ref,
        )  # fmt: skip
        return (result, *out)

    def read(result: Tensors) -> Tensors:
        if slots is None:
            return result
        return result[0], result[1][:, slots], result[2][:, slots]

    def expected(convert: Convert) -> Tensors:
        qkv, *both_tables = (
            tuple(convert(x) for x in group) for group in ((q, k, v), tables, ref_tables)
        )
        out = empty_outputs(qkv[0].dtype)
        return read(run(qk_norm_rope, qkv, out, *both_tables, convert(weights), "reference"))

    calls = calls_by_name(
        run, qk_norm_rope, inputs.implementations(*inputs.baselines),
        (q, k, v), empty_outputs(inputs.dtype), tables, ref_tables, weights,
    )  # fmt: skip
    moved = 6.0 * q.nbytes + 2 * cos.nbytes
    if m is None:
        moved += q.nbytes * layer.num_noise / s + 2 * ref_tables[0].nbytes
    return Case(
        "qk_norm_rope", parameters | shape.columns, calls, read, expected, inputs.dtype,
        flops=14.0 * q.numel(), bytes=moved, ceiling="copy",
    )  # fmt: skip


def blend(layer: Layer, m: int, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of blending the reused rows, in random order, in a step with `m` rows."""
    rows = [inputs.normal(1, layer.num_noise, layer.heads, layer.dim) for _ in range(4)]
    reused = inputs.permutation(layer.num_noise)[m - layer.num_prompt :]

    def run(op: Callable[..., None], out: list[Tensor], rows: list[Tensor], impl: str) -> Tensors:
        op(*out, *rows, reused, weight=0.3, impl=impl)
        return tuple(out)

    def read(result: Tensors) -> Tensors:
        return tuple(x[:, reused] for x in result)

    def expected(convert: Convert) -> Tensors:
        converted = [convert(x) for x in rows]
        out = [torch.empty_like(x) for x in converted[:2]]
        return read(run(kv_blend, out, converted, "reference"))

    out = [torch.empty_like(x) for x in rows[:2]]
    calls = calls_by_name(run, kv_blend, inputs.implementations(*inputs.baselines), out, rows)
    shape = AttentionShape(reused.numel(), layer.num_noise, layer.heads, layer.dim)
    elements = shape.m * shape.heads * shape.dim
    return Case(
        "kv_blend", parameters | shape.columns, calls, read, expected, inputs.dtype,
        flops=6.0 * elements, bytes=6.0 * elements * rows[0].element_size(), ceiling="copy",
    )  # fmt: skip


def distance(layer: Layer, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of a picture's feature maps against the source's, which are normalised."""
    x, y = ([inputs.normal(1, *size) for size in layer.maps] for _ in range(2))
    y = list(normalise_features(y))  # fp32

    def run(op: Callable[..., Tensor], x: list[Tensor], y: list[Tensor], impl: str) -> Tensors:
        return (op(x, y, layer.grid, y_normalised=True, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        converted = ([convert(a) for a in maps] for maps in (x, y))
        return run(token_distance, *converted, "reference")

    return Case(
        "token_distance", parameters | {"S": layer.num_noise},
        calls_by_name(run, token_distance, inputs.implementations(*inputs.baselines), x, y),
        lambda result: result, expected, inputs.dtype,
        flops=6.0 * sum(a.numel() for a in x), bytes=float(sum(a.nbytes for a in (*x, *y))),
        ceiling="copy",
    )  # fmt: skip


def latents(layer: Layer, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of a step's clean latents, from its velocity, against the source's."""
    rows = [inputs.normal(1, layer.num_noise, LATENT_CHANNELS) for _ in range(3)]

    def run(op: Callable[..., Tensor], rows: list[Tensor], impl: str) -> Tensors:
        x, y, velocity = rows
        return (op(x, y, velocity=velocity, sigma=0.3, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        return run(latent_distance, [convert(x) for x in rows], "reference")

    return Case(
        "latent_distance", parameters | {"S": layer.num_noise, "C": LATENT_CHANNELS},
        calls_by_name(run, latent_distance, inputs.implementations(*inputs.baselines), rows),
        lambda result: result, expected, inputs.dtype,
        flops=5.0 * rows[0].numel(), bytes=float(sum(x.nbytes for x in rows)), ceiling="copy",
    )  # fmt: skip


def select(
    layer: Layer, threshold: float | None, parameters: dict[str, Any], inputs: Inputs
) -> Case:
    """Return the case of selecting a tenth of the tokens, whose scores are far above the others."""
    noise = inputs.normal(2, 1, layer.num_noise, dtype=torch.float32)
    scores = noise[0].sigmoid() + 3.0 * (noise[1] > 1.28)

    def run(op: Callable[..., Tensors], impl: str) -> Tensors:
        return op(scores, layer.grid, threshold=threshold, dilation=1, pad_to=128, impl=impl)

    rule = "two means" if threshold is None else "threshold"
    return Case(
        "select_tokens", parameters | {"S": layer.num_noise, "rule": rule},
        calls_by_name(run, select_tokens, inputs.implementations(*inputs.baselines)),
        lambda result: result, lambda convert: run(select_tokens, "reference"), torch.float32,
        flops=0.0, ceiling="",
        bytes=9.0 * layer.num_noise,  # reads fp32 scores, writes flags and an int32 index
    )  # fmt: skip
