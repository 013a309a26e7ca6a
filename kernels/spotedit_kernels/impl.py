"""Choose the implementation of an operation: the Triton kernel or the PyTorch reference."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "reference"]
IMPLS = ("auto", "triton", "reference")
HAS_TRITON = find_spec("triton") is not None


def choose_impl(op: str, impl: str, like: Tensor) -> str:
    """Return "triton" or "reference": what `impl` means for tensors with `like`'s dtype and device.

    "auto" takes the Triton kernel for tensors on a GPU, and the reference elsewhere.

    Raises:
        ValueError: `impl` is not one of "auto", "triton", "reference".
        RuntimeError: "triton" was asked for and cannot run here.
    """
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of {IMPLS}, got {impl!r}.")
    if impl == "reference" or (impl == "auto" and like.device.type != "cuda"):
        return "reference"
    obstacle = _obstacle(like)
    if obstacle is None:
        return "triton"
    if impl == "auto":
        return "reference"
    raise RuntimeError(
        f"{op}: impl='triton' was asked for, but {obstacle}; pass impl='auto' or impl='reference'."
    )


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, as it does with TRITON_INTERPRET=1.

    Triton reads that variable when a kernel is defined, so set it before the first call.
    """
    if not HAS_TRITON:
        return False
    from .primitives import INTERPRETED

    return INTERPRETED


def _obstacle(like: Tensor) -> str | None:
    """Return why the Triton kernels cannot take `like`, or None if they can."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if like.dtype == torch.float64:
        return "the Triton kernels compute in fp32 and the tensors are in fp64"
    if like.device.type != "cuda" and not is_interpreted():
        return f"Triton kernels run on a GPU and the tensors are on {like.device}"
    return None
