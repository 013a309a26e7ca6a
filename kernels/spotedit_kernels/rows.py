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


def scatter_rows(index: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """For each pair write values ``[B, M, ...]`` to the indexed rows of a target ``[B, S, ...]``.

    A static number of rows is written whatever the index holds: padding repeats the write of a
    real entry, same row and same value, so the order of the writes does not matter. If all is
    padding, that row is row 0, and what it held is put back.
    """
    if index.shape[-1] == 0:
        return
    real = index.argmax(-1, keepdim=True)  # the position of a real entry, if there is one
    position = torch.arange(index.shape[-1], device=index.device)
    position = torch.where(index >= 0, position, real)  # [M] or [B, M]
    rows = index.gather(-1, position)
    empty = rows[..., 0] < 0  # scalar or [B]
    rows = rows.clamp(min=0).long()
    for target, values in pairs:
        if values.numel() == 0:
            continue
        values = gather_rows(values, position)
        first = target[:, 0].clone()  # [B, ...]
        if index.ndim == 1:
            target.index_copy_(1, rows, values)
        else:
            batch = torch.arange(target.shape[0], device=target.device)[:, None]
            target.index_put_((batch, rows), values)
        keep = empty.reshape(-1, *[1] * (first.ndim - 1))
        target[:, 0] = torch.where(keep, first, target[:, 0])


def row_mask(index: Tensor, rows: int) -> Tensor:
    """True on the indexed ones of `rows` rows: bool ``[rows]`` or ``[B, rows]``."""
    mask = index.new_zeros(*index.shape[:-1], rows + 1, dtype=torch.bool)  # the last one is padding
    return mask.scatter_(-1, torch.where(index < 0, rows, index).long(), True)[..., :rows]
