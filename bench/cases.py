"""Define a measured operation: its inputs, its calls by name, and what they should return.

The calls "triton", "auto" and "reference" are implementations of ours; all others are baselines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from spotedit_kernels.impl import HAS_TRITON, is_interpreted
from torch import Tensor

from .rows import Parameters

Tensors = tuple[Tensor, ...]
Convert = Callable[[Tensor], Tensor]  # Tensor.double, or Tensor.clone; applied to the inputs
COMPILED = "compiled reference"
CHECKED_ROWS = 32  # query rows of an attention that are compared; more logits in fp64 would not fit
EPS = 1e-6  # of the RMSNorm


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        op: name of the operation.
        parameters: shape and settings, for the rows.
        calls: each returns the tensors that it wrote; the next call may overwrite them.
        read: picks what to compare from those tensors.
        expected: returns what `read` should give, computed from converted inputs.
        dtype: dtype of the inputs, whose eps enters the error bound.
        flops, bytes: what the operation must compute and move, whatever a call does.
        ceiling: what limits its speed, "matmul" or "copy"; "" if it is too small for either.
        before: runs before every call and is not timed.
        facts: further figures by name, as (value, unit).
    """

    op: str
    parameters: Parameters
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
    """Makes random tensors of one device and dtype, the same in every run and never all zeros.

    Args:
        compiled: whether the references compiled by torch.compile are measured too.
    """

    def __init__(self, device: str, dtype: torch.dtype, compiled: bool = False) -> None:
        self.device, self.dtype = device, dtype
        self.baselines = (COMPILED,) if compiled else ()
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Draw normal values."""
        options = {"generator": self.generator, "device": self.device}
        return torch.randn(size, dtype=dtype or self.dtype, **options)

    def tables(self, rows: int, dim: int) -> Tensors:
        """Make cos and sin tables for interleaved pairs, fp32 ``[rows, dim]``."""
        angle = self.normal(rows, dim // 2, dtype=torch.float32).repeat_interleave(2, -1)
        return angle.cos(), angle.sin()

    def permutation(self, count: int) -> Tensor:
        """Draw a random order of the indices below `count`."""
        return torch.randperm(count, generator=self.generator, device=self.device)

    def implementations(self, *more: str) -> tuple[str, ...]:
        """Return the names of the implementations that run here, followed by `more`."""
        triton = HAS_TRITON and (self.device == "cuda" or is_interpreted())
        return (*(("triton",) if triton else ()), "reference", *more)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` for fixed shapes. Earlier compilations are dropped, for their limits."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def calls_by_name(
    run: Callable[..., Tensors], op: Callable[..., Any], names: tuple[str, ...], *args: Any
) -> dict[str, Callable[[], Tensors]]:
    """Return calls of ``run(op, *args, impl=name)`` for each name.

    `COMPILED` calls the reference of the compiled op.
    """
    calls: dict[str, Callable[[], Tensors]] = {
        name: partial(run, op, *args, impl=name) for name in names if name != COMPILED
    }
    if COMPILED in names:
        calls[COMPILED] = partial(run, compiled(op), *args, impl="reference")
    return calls


def checked_rows(m: int, device: str) -> Tensor:
    """Return up to `CHECKED_ROWS` row indices, evenly spread from the first to the last of `m`."""
    count = min(m, CHECKED_ROWS)
    return torch.linspace(0, max(m - 1, 0), count, device=device).round().long()
