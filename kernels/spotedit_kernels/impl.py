"""The choice of an implementation: ``"auto"`` chooses, an explicit name is taken or refused."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "reference"]
IMPLS = ("auto", "triton", "reference")
HAS_TRITON = find_spec("triton") is not None

if HAS_TRITON:
    from .primitives import INTERPRETED
else:
    INTERPRETED = False


def choose_impl(op: str, impl: str, like: Tensor) -> str:
    """Resolve `impl` to "triton" or "reference" for tensors such as `like`.

    "auto" takes the Triton kernel where it runs on a GPU, and the reference elsewhere.

    Raises:
        ValueError: `impl` is not one of "auto", "triton", "reference".
        RuntimeError: "triton" was asked for and cannot run here.
    """
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of {IMPLS}, got {impl!r}.")
    if impl == "reference":
        return impl
    obstacle = _obstacle(like)
    if impl == "auto":
        return "triton" if obstacle is None and like.device.type == "cuda" else "reference"
    if obstacle is not None:
        raise RuntimeError(
            f"{op}: impl='triton' was asked for, but {obstacle}; "
            f"pass impl='auto' or impl='reference'."
        )
    return impl


def _obstacle(like: Tensor) -> str | None:
    """Why the Triton kernels cannot take `like`."""
    if not HAS_TRITON:
        return "Triton is not installed"
    if like.dtype == torch.float64:
        return "the Triton kernels compute in fp32 and the tensors are in fp64"
    if like.device.type != "cuda" and not INTERPRETED:
        return f"Triton kernels run on a GPU and the tensors are on {like.device}"
    return None
