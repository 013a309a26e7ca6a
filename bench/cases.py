"""A measured operation: its inputs, its calls by name, and what they should return.

"triton", "auto" and "reference" are the implementations; the other names are baselines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from spotedit_kernels.impl import HAS_TRITON, is_interpreted
from torch import Tensor

Tensors = tuple[Tensor, ...]
Convert = Callable[[Tensor], Tensor]  # of the inputs: Tensor.double, or Tensor.clone
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
    """Random tensors of one device and dtype, the same in every run; never zeros.

    `compiled`: whether the references are measured through torch.compile too.
    """

    def __init__(self, device: str, dtype: torch.dtype, compiled: bool = False) -> None:
        self.device, self.dtype = device, dtype
        self.baselines = (COMPILED,) if compiled else ()
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
        triton = HAS_TRITON and (self.device == "cuda" or is_interpreted())
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
