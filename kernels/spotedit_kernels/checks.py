"""Contract checks shared by the ops.

They read shapes, dtypes and devices only, never values, so they cost no device synchronisation.
Every message starts with the op and says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The arithmetic dtype of an op: fp64 for fp64 data, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensors(op: str, **tensors: object) -> None:
    """TypeError unless every value is a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}.")


def check_rank(op: str, name: str, tensor: Tensor, axes: str) -> None:
    """ValueError unless `tensor` has one dimension per letter of `axes`, e.g. ``"BSHD"``."""
    if tensor.ndim != len(axes):
        raise ValueError(
            f"{op}: {name} must have shape [{', '.join(axes)}] ({len(axes)} dimensions), "
            f"got {tuple(tensor.shape)}; reshape or unsqueeze it."
        )


def check_shape(
    op: str, name: str, tensor: Tensor, expected: tuple[int, ...], axes: str, fix: str
) -> None:
    """ValueError unless `tensor` has the shape `expected`, whose axes are the letters of `axes`."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {name} must have shape [{', '.join(axes)}] = {tuple(expected)}, "
            f"got {tuple(tensor.shape)}; {fix}."
        )


def check_dtype(
    op: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], fix: str
) -> None:
    """TypeError unless the dtype of `tensor` is in `allowed`."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be of dtype {names}, got {got}; {fix}.")


def check_floats(op: str, first: str, **tensors: Tensor) -> None:
    """TypeError unless tensor `first` is floating and all the others share its dtype."""
    check_dtype(op, first, tensors[first], FLOATS, "convert it with .to(dtype)")
    for name, tensor in tensors.items():
        check_dtype(op, name, tensor, (tensors[first].dtype,), f"convert it to {first}'s dtype")


def check_device(op: str, like: Tensor, **tensors: Tensor | None) -> None:
    """ValueError unless all given tensors live on the device of the op's first one, `like`."""
    device = like.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{op}: {name} must be on {device} like the other tensors, got {tensor.device}; "
                f"move it with .to({str(device)!r})."
            )


def check_number(op: str, name: str, value: float) -> None:
    """TypeError unless `value` is a number, ValueError unless it is finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a float or a tensor, got {type(value).__name__}.")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{op}: {name} must be finite, got {value}; check the schedule's sigmas.")


def check_scalar(op: str, name: str, value: float | Tensor, like: Tensor) -> None:
    """Check that `value` is a finite number, or a floating 0-d tensor on the device of `like`."""
    if isinstance(value, Tensor):
        check_dtype(op, name, value, FLOATS, "convert it with .float()")
        check_shape(op, name, value, (), "", "one number serves all rows; index the tensor")
        check_device(op, like, **{name: value})
    else:
        check_number(op, name, value)


def check_index(op: str, name: str, index: Tensor, batch: int, rows: int | None = None) -> None:
    """Check a row index: int32 or int64, ``[M]`` or ``[B, M]``; `rows` fixes M if it is given."""
    check_tensors(op, **{name: index})
    check_dtype(op, name, index, INTEGERS, "convert it with .long()")
    if index.ndim not in (1, 2) or (index.ndim == 2 and index.shape[0] != batch):
        raise ValueError(
            f"{op}: {name} must have shape [M] or [B, M] with B = {batch}, "
            f"got {tuple(index.shape)}; give one index for all or one per batch row."
        )
    if rows is not None and index.shape[-1] != rows:
        raise ValueError(
            f"{op}: {name} must have M = {rows} entries, got {index.shape[-1]}; "
            f"pad it with -1 where a row has no slot."
        )
