"""The choice of an implementation: ``"auto"`` chooses, an explicit name is taken or refused."""

from __future__ import annotations

from typing import Literal

Impl = Literal["auto", "triton", "reference"]
IMPLS = ("auto", "triton", "reference")


def choose_impl(op: str, impl: str, *, available: tuple[str, ...] = ("reference",)) -> str:
    """Resolve `impl` to one of `available`, which lists an op's implementations, best first.

    Raises:
        ValueError: `impl` is not one of "auto", "triton", "reference".
        NotImplementedError: `impl` names an implementation that this op does not have.
    """
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl must be one of {IMPLS}, got {impl!r}.")
    if impl == "auto":
        return available[0]
    if impl not in available:
        raise NotImplementedError(
            f"{op}: impl={impl!r} was asked for, but this version has only {available}; "
            f"pass impl='auto' or impl={available[0]!r}."
        )
    return impl
