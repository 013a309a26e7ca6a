"""Every operation of the kernels at a named shape: inputs, calls by name, what they should return.

"triton", "auto" and "reference" are the implementations; the other names are baselines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels import (
    gathered_attention,
    kv_blend,
    qk_norm_rope,
    select_tokens,
    token_distance,
)
from spotedit_kernels.impl import HAS_TRITON, INTERPRETED
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .shapes import Layer, Rows

Tensors = tuple[Tensor, ...]
Convert = Callable[[Tensor], Tensor]  # of the inputs: Tensor.double, or Tensor.clone
SDPA = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA FLASH": SDPBackend.FLASH_ATTENTION,
    "SDPA EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
}
COMPILED = "compiled reference"
PICKED = 32  # query rows of an attention that are compared: fp64 logits of all would not fit
EPS = 1e-6  # of the RMSNorm


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        op: its name.
        at: shape and settings, for the rows.
        calls: each returns the tensors that it wrote; they may be overwritten before the next call.
        read: of those tensors, what to compare.
        expected: what `read` should give, from converted inputs.
        dtype: of the inputs; the error bound's eps.
        flops, bytes: what the operation must compute and move, not what a call does.
        ceiling: "matmul" or "copy", which of them limits it; "" = neither, it is too small.
        before: run before every call, not timed.
        facts: further figures by name (value, unit).
    """

    op: str
    at: Mapping[str, str | int | float]
    calls: Mapping[str, Callable[[], Tensors]]
    read: Callable[[Tensors], Tensors]
    expected: Callable[[Convert], Tensors]
    dtype: torch.dtype
    flops: float
    bytes: float
    ceiling: str
    before: Callable[[], object] = lambda: None
    facts: Mapping[str, tuple[float, str]] = field(default_factory=dict)


class Inputs:
    """Random tensors of one device and dtype, the same in every run; never zeros."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        options = {"generator": self.generator, "device": self.device}
        return torch.randn(size, dtype=dtype or self.dtype, **options)

    def tables(self, rows: int, dim: int) -> Tensors:
        """cos and sin, fp32 ``[rows, dim]``, of interleaved pairs."""
        angle = self.normal(rows, dim // 2, dtype=torch.float32).repeat_interleave(2, -1)
        return angle.cos(), angle.sin()

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator, device=self.device)

    def implementations(self, *more: str) -> tuple[str, ...]:
        """Those that run here, Triton's interpreter included, and `more`."""
        triton = HAS_TRITON and (self.device == "cuda" or INTERPRETED)
        return (*(("triton",) if triton else ()), "reference", *more)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for these shapes alone; what was compiled before is dropped, to stay in limits."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def by_name(
    run: Callable[..., Tensors], op: Callable[..., Any], names: tuple[str, ...], *args: Any
) -> dict[str, Callable[[], Tensors]]:
    """``run(op, *args, impl=name)`` for each name; the compiled reference's op is compiled."""
    calls: dict[str, Callable[[], Tensors]] = {
        name: partial(run, op, *args, impl=name) for name in names if name != COMPILED
    }
    if COMPILED in names:
        calls[COMPILED] = partial(run, compiled(op), *args, impl="reference")
    return calls


def spread(m: int, device: str) -> Tensor:
    """Row numbers from the first to the last of `m`."""
    count = min(m, PICKED)
    return torch.linspace(0, max(m - 1, 0), count, device=device).round().long()


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensors:
    with sdpa_kernel(backend):
        result = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return (result.transpose(1, 2),)


def attention(shape: Rows, at: dict[str, Any], inputs: Inputs) -> Case:
    b, h, d = shape.batch, shape.heads, shape.dim
    q = inputs.normal(b, shape.m, h, d)
    k, v = (inputs.normal(b, shape.s, h, d) for _ in range(2))
    picked = spread(shape.m, inputs.device)

    def run(op: Callable[..., Tensor], impl: str) -> Tensors:
        return (op(q, k, v, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        tensors = (convert(x) for x in (q[:, picked], k, v))
        return (gathered_attention(*tensors, impl="reference"),)

    calls = by_name(run, gathered_attention, inputs.implementations("auto"))
    calls |= {name: partial(sdpa, backend, q, k, v) for name, backend in SDPA.items()}
    return Case(
        "gathered_attention", at | {"M": shape.m, "S": shape.s}, calls,
        lambda result: (result[0][:, picked],), expected, inputs.dtype,
        4.0 * b * shape.m * shape.s * h * d, 2.0 * (q.nbytes + k.nbytes), "matmul",
    )  # fmt: skip


def quantise(x: Tensor) -> Tensors:
    """int8 values and the fp32 scale of each row and head ``[B, S, H]``."""
    scale = x.float().abs().amax(-1) / 127
    return (x.float() / scale[..., None]).round().to(torch.int8), scale


def int8_attention(shape: Rows, at: dict[str, Any], inputs: Inputs) -> Case:
    """Against the same attention over the dequantised keys and values."""
    q = inputs.normal(1, shape.m, shape.heads, shape.dim)
    k, v = (inputs.normal(1, shape.s, shape.heads, shape.dim) for _ in range(2))
    (k8, k_scale), (v8, v_scale) = quantise(k), quantise(v)
    wide = [x * s[..., None] for x, s in ((k8, k_scale), (v8, v_scale))]
    plain = [x.to(inputs.dtype) for x in wide]
    picked = spread(shape.m, inputs.device)

    def run(op: Callable[..., Tensor], impl: str) -> Tensors:
        return (op(q, k8, v8, k_scale=k_scale, v_scale=v_scale, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        rows = convert(q[:, picked])
        tensors = (convert(x).to(rows.dtype) for x in wide)
        return (gathered_attention(rows, *tensors, impl="reference"),)

    exact = gathered_attention(q[:, picked].double(), k.double(), v.double(), impl="reference")
    error = (expected(Tensor.double)[0] - exact).norm() / exact.norm()
    kept = k8.nbytes + v8.nbytes + k_scale.nbytes + v_scale.nbytes
    calls = by_name(run, gathered_attention, inputs.implementations("auto"))
    for impl in inputs.implementations():
        calls[f"{impl}, not quantised"] = lambda impl=impl: (
            gathered_attention(q, *plain, impl=impl),
        )
    return Case(
        "gathered_attention int8", at | {"M": shape.m, "S": shape.s}, calls,
        lambda result: (result[0][:, picked],), expected, inputs.dtype,
        4.0 * shape.m * shape.s * shape.heads * shape.dim, 2.0 * q.nbytes + kept, "matmul",
        facts={
            "cache bytes, int8 / not quantised": (kept / (k.nbytes + v.nbytes), "x"),
            "error that int8 adds, relative to the result": (error.item(), "share"),
        },
    )  # fmt: skip


def rope(layer: Layer, m: int | None, at: dict[str, Any], inputs: Inputs, *more: str) -> Case:
    """`m` scattered rows of a spot step; None: a full step, which also fills `k_ref`."""
    shape = layer.attention(0)
    s, heads, dim = shape.s, shape.heads, shape.dim
    rows = s if m is None else m
    q, k, v = (inputs.normal(1, rows, heads, dim) for _ in range(3))
    weights = inputs.normal(4, dim)
    cos, sin = inputs.tables(rows, dim)
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

    calls = by_name(run, qk_norm_rope, inputs.implementations(*more),
                    (q, k, v), written(inputs.dtype), tables, ref, weights)  # fmt: skip
    moved = 6.0 * q.nbytes + 2 * cos.nbytes
    if m is None:
        moved += q.nbytes * layer.noise / s + 2 * ref[0].nbytes
    return Case("qk_norm_rope", at | {"M": rows, "S": s}, calls, read, expected, inputs.dtype,
                14.0 * q.numel(), moved, "copy")  # fmt: skip


def blend(layer: Layer, m: int, at: dict[str, Any], inputs: Inputs, *more: str) -> Case:
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
    calls = by_name(run, kv_blend, inputs.implementations(*more), out, rows)
    count = reused.numel() * layer.heads * layer.dim
    return Case(
        "kv_blend", at | {"M": reused.numel(), "S": layer.noise}, calls, read, expected,
        inputs.dtype, 6.0 * count, 6.0 * count * rows[0].element_size(), "copy",
    )  # fmt: skip


def distance(layer: Layer, at: dict[str, Any], inputs: Inputs, *more: str) -> Case:
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
        by_name(run, token_distance, inputs.implementations(*more), x, y),
        lambda result: result, expected, inputs.dtype,
        6.0 * elements, float(sum(a.nbytes for a in (*x, *y))), "copy",
    )  # fmt: skip


def select(
    layer: Layer, threshold: float | None, at: dict[str, Any], inputs: Inputs, *more: str
) -> Case:
    """A tenth of the tokens changed, far from the others."""
    noise = inputs.normal(2, 1, layer.noise, dtype=torch.float32)
    scores = noise[0].sigmoid() + 3.0 * (noise[1] > 1.28)

    def run(op: Callable[..., Tensors], impl: str) -> Tensors:
        return op(scores, layer.grid, threshold=threshold, dilation=1, pad_to=128, impl=impl)

    rule = "two means" if threshold is None else "threshold"
    return Case(
        "select_tokens", at | {"S": layer.noise, "rule": rule},
        by_name(run, select_tokens, inputs.implementations(*more)),
        lambda result: result, lambda convert: run(select_tokens, "reference"), torch.float32,
        0.0, 9.0 * layer.noise, "",  # fp32 scores in; flags and an int32 index out
    )  # fmt: skip
