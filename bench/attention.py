"""Attention as measured: each backend of PyTorch's alone beside ours, and int8 keys and values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels import gathered_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cases import Case, Convert, Inputs, Tensors, by_name, spread
from .shapes import Rows

SDPA = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA FLASH": SDPBackend.FLASH_ATTENTION,
    "SDPA EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
}


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
        "gathered_attention", at | shape.columns, calls,
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
        "gathered_attention int8", at | shape.columns, calls,
        lambda result: (result[0][:, picked],), expected, inputs.dtype,
        4.0 * shape.m * shape.s * shape.heads * shape.dim, 2.0 * q.nbytes + kept, "matmul",
        facts={
            "cache bytes, int8 / not quantised": (kept / (k.nbytes + v.nbytes), "x"),
            "error that int8 adds, relative to the result": (error.item(), "share"),
        },
    )  # fmt: skip
