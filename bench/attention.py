"""Define the cases of attention, beside each backend of PyTorch's, and of int8 attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels import gathered_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cases import Case, Convert, Inputs, Tensors, calls_by_name, checked_rows
from .shapes import AttentionShape

SDPA = {
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA FLASH": SDPBackend.FLASH_ATTENTION,
    "SDPA EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensors:
    """Attend with one backend of PyTorch's."""
    with sdpa_kernel(backend):
        result = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return (result.transpose(1, 2),)


def attention(shape: AttentionShape, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of attention in the inputs' dtype."""
    b, h, d = shape.batch, shape.heads, shape.dim
    q = inputs.normal(b, shape.m, h, d)
    k, v = (inputs.normal(b, shape.s, h, d) for _ in range(2))
    checked = checked_rows(shape.m, inputs.device)

    def run(op: Callable[..., Tensor], impl: str) -> Tensors:
        return (op(q, k, v, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        tensors = (convert(x) for x in (q[:, checked], k, v))
        return (gathered_attention(*tensors, impl="reference"),)

    calls = calls_by_name(run, gathered_attention, inputs.implementations("auto"))
    calls |= {name: partial(sdpa, backend, q, k, v) for name, backend in SDPA.items()}
    return Case(
        "gathered_attention", parameters | shape.columns, calls,
        lambda result: (result[0][:, checked],), expected, inputs.dtype,
        flops=4.0 * b * shape.m * shape.s * h * d, bytes=2.0 * (q.nbytes + k.nbytes),
        ceiling="matmul",
    )  # fmt: skip


def quantise(x: Tensor) -> Tensors:
    """Return int8 values, and the fp32 scale of each row and head ``[B, S, H]``."""
    scale = x.float().abs().amax(-1) / 127
    return (x.float() / scale[..., None]).round().to(torch.int8), scale


def int8_attention(shape: AttentionShape, parameters: dict[str, Any], inputs: Inputs) -> Case:
    """Return the case of attention over int8 keys and values.

    It is checked against attention over the same keys and values, dequantised.
    """
    q = inputs.normal(1, shape.m, shape.heads, shape.dim)
    k, v = (inputs.normal(1, shape.s, shape.heads, shape.dim) for _ in range(2))
    (k8, k_scale), (v8, v_scale) = quantise(k), quantise(v)
    dequantised = [k8 * k_scale[..., None], v8 * v_scale[..., None]]  # fp32
    unquantised = [x.to(inputs.dtype) for x in dequantised]
    checked = checked_rows(shape.m, inputs.device)

    def run(op: Callable[..., Tensor], impl: str) -> Tensors:
        return (op(q, k8, v8, k_scale=k_scale, v_scale=v_scale, impl=impl),)

    def run_unquantised(impl: str) -> Tensors:
        return (gathered_attention(q, *unquantised, impl=impl),)

    def expected(convert: Convert) -> Tensors:
        rows = convert(q[:, checked])
        keys_values = (convert(x).to(rows.dtype) for x in dequantised)
        return (gathered_attention(rows, *keys_values, impl="reference"),)

    exact = gathered_attention(q[:, checked].double(), k.double(), v.double(), impl="reference")
    error = (expected(Tensor.double)[0] - exact).norm() / exact.norm()
    cache_bytes = k8.nbytes + v8.nbytes + k_scale.nbytes + v_scale.nbytes
    calls = calls_by_name(run, gathered_attention, inputs.implementations("auto"))
    for impl in inputs.implementations():
        calls[f"{impl}, not quantised"] = partial(run_unquantised, impl)
    return Case(
        "gathered_attention int8", parameters | shape.columns, calls,
        lambda result: (result[0][:, checked],), expected, inputs.dtype,
        flops=4.0 * shape.m * shape.s * shape.heads * shape.dim,
        bytes=2.0 * q.nbytes + cache_bytes, ceiling="matmul",
        facts={
            "cache bytes, int8 / not quantised": (cache_bytes / (k.nbytes + v.nbytes), "x"),
            "error that int8 adds, relative to the result": (error.item(), "share"),
        },
    )  # fmt: skip
