"""Describe a Triton kernel and its compile-time arguments, for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """A kernel with one choice of its compile-time arguments.

    Attributes:
        name: the operation, the dtype, and the options that tell this schedule from the others.
        kernel: the jitted function.
        types: Triton types of the run-time arguments, e.g. ``"*fp16"``. An argument that is not
            listed is ``"i32"``.
        constants: values of the compile-time arguments.
        num_warps, num_stages: Triton's launch options.
        aligned: names of the integer arguments that are multiples of 16.
        tensor_cores: whether the kernel multiplies matrices.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    aligned: tuple[str, ...] = ()
    tensor_cores: bool = False
