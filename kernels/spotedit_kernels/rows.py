"""Reading and writing indexed rows of ``[B, S, ...]`` tensors without a device synchronisation.

An index is ``[M]`` (the same rows for the whole batch) or ``[B, M]``; negative entries are padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(source: Tensor, index: Tensor) -> Tensor:
    """Rows ``[B, M, ...]`` of `source` ``[B, S, ...]``; padding reads row 0."""
    rows = index.clamp(min=0)
    if index.ndim == 1:
        return source.index_select(1, rows)
    batch = torch.arange(source.shape[0], device=source.device)[:, None]
    return source[batch, rows.long()]


def scatter_rows(target: Tensor, index: Tensor, values: Tensor) -> None:
    """Write `values` ``[B, M, ...]`` to the indexed rows of `target` ``[B, S, ...]``, in place.

    A static number of rows is written whatever the index holds: padding repeats the write of the
    first real entry, same row and same value, so the order of the writes does not matter. If all
    is padding, row 0 is rewritten with what it holds.
    """
    if values.numel() == 0:
        return
    valid = index >= 0  # [M] or [B, M]
    first = valid.int().argmax(-1, keepdim=True)  # [1] or [B, 1]
    row = index.gather(-1, first).clamp(min=0)
    rows = torch.where(valid, index, row).long()
    fill = torch.where(  # [B, 1, ...]
        _over_rows(valid.any(-1, keepdim=True), values),
        gather_rows(values, first),
        gather_rows(target, row),
    )
    values = torch.where(_over_rows(valid, values), values, fill)
    if index.ndim == 1:
        target.index_copy_(1, rows, values)
    else:
        batch = torch.arange(target.shape[0], device=target.device)[:, None]
        target.index_put_((batch, rows), values)


def _over_rows(flags: Tensor, values: Tensor) -> Tensor:
    """View ``[M]`` or ``[B, M]`` flags so that they broadcast over values ``[B, M, ...]``."""
    return flags.reshape(*flags.shape, *[1] * (values.ndim - 2))
