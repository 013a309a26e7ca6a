"""Argument checks that the operations share.

The checks read shapes, dtypes and devices, never the values of a tensor, so they do not
synchronise with the device. Every message names the operation, the expected value, the actual one
and what to do about it.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of an operation's arithmetic: fp64 for fp64 data, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensors(op: str, **tensors: object) -> None:
    """Raise TypeError unless every value is a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}.")


def check_rank(op: str, name: str, tensor: Tensor, axes: str) -> None:
    """Raise ValueError unless `tensor` has one dimension per letter of `axes`, e.g. ``"BSHD"``."""
    if tensor.ndim != len(axes):
        raise ValueError(
            f"{op}: {name} must have shape [{', '.join(axes)}] ({len(axes)} dimensions), "
            f"got {tuple(tensor.shape)}; reshape or unsqueeze it."
        )


def check_shape(
    op: str, name: str, tensor: Tensor, expected: tuple[int, ...], axes: str, hint: str
) -> None:
    """Raise ValueError unless `tensor` has the shape `expected`.

    `axes` has a letter for each dimension. `hint` ends the message and says what to do.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {name} must have shape [{', '.join(axes)}] = {tuple(expected)}, "
            f"got {tuple(tensor.shape)}; {hint}."
        )


def check_dtype(
    op: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], hint: str
) -> None:
    """Raise TypeError unless the dtype of `tensor` is in `allowed`; `hint` ends the message."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be of dtype {names}, got {got}; {hint}.")


def check_floats(op: str, first: str, **tensors: Tensor) -> None:
    """Raise TypeError unless the tensor named `first` is floating and all others have its dtype."""
    check_dtype(op, first, tensors[first], FLOATS, "convert it with .to(dtype)")
    for name, tensor in tensors.items():
        check_dtype(op, name, tensor, (tensors[first].dtype,), f"convert it to {first}'s dtype")


def check_device(op: str, like: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError unless every tensor is on the device of `like`; None is skipped."""
    device = like.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on {device} like the other tensors, got {tensor.device}; "
                f"move it with .to({str(device)!r})."
            )


def check_number(op: str, name: str, value: float) -> None:
    """Raise TypeError unless `value` is a number, and ValueError unless it is finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a float or a tensor, got {type(value).__name__}.")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} must be finite, got {value}; check the schedule's sigmas.")


def check_scalar(op: str, name: str, value: float | Tensor, like: Tensor) -> None:
    """Check that `value` is a finite number, or a floating 0-d tensor on the device of `like`."""
    if isinstance(value, Tensor):
        check_dtype(op, name, value, FLOATS, "convert it with .float()")
        check_shape(op, name, value, (), "", "the same number is used for all rows; select one")
        check_device(op, like, **{name: value})
    else:
        check_number(op, name, value)


def check_index(op: str, name: str, index: Tensor, batch: int, length: int | None = None) -> None:
    """Check that a row index is int32 or int64, of shape ``[M]`` or ``[B, M]``.

    If `length` is given, M must equal it.
    """
    check_tensors(op, **{name: index})
    check_dtype(op, name, index, INTEGERS, "convert it with .long()")
    if index.ndim not in (1, 2) or (index.ndim == 2 and index.shape[0] != batch):
        raise ValueError(
            f"{op}: {name} must have shape [M] or [B, M] with B = {batch}, "
            f"got {tuple(index.shape)}; give one index for the whole batch or one per batch row."
        )
    if length is not None and index.shape[-1] != length:
        raise ValueError(
            f"{op}: {name} must have M = {length} entries, got {index.shape[-1]}; "
            f"pad it with -1 for the rows without a slot."
        )
