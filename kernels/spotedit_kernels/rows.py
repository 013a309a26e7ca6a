"""Read and write indexed rows of ``[B, S, ...]`` tensors without synchronising with the device.

An index is ``[M]`` (the same rows for the whole batch) or ``[B, M]``; negative entries are padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(source: Tensor, index: Tensor) -> Tensor:
    """Return rows ``[B, M, ...]`` of `source` ``[B, S, ...]``; padding reads row 0."""
    rows = index.clamp(min=0)
    if index.ndim == 1:
        return source.index_select(1, rows)
    batch = torch.arange(source.shape[0], device=source.device)[:, None]
    return source[batch, rows.long()]


def scatter_rows(index: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """For each pair, write values ``[B, M, ...]`` to the indexed rows of a target ``[B, S, ...]``.

    M rows are always written, so that no shape depends on the index' values. A padding entry
    repeats the write of a real entry: it writes the same value to the same row, so the order of the
    writes does not matter. If every entry is padding, row 0 is written and then restored.
    """
    if index.shape[-1] == 0:
        return
    # Padding entries take the place of the largest entry, which is real unless all are padding.
    real_position = index.argmax(-1, keepdim=True)
    position = torch.arange(index.shape[-1], device=index.device)
    position = torch.where(index >= 0, position, real_position)  # [M] or [B, M]
    rows = index.gather(-1, position)
    all_padding = rows[..., 0] < 0  # scalar or [B]
    rows = rows.clamp(min=0).long()
    for target, values in pairs:
        if values.numel() == 0:
            continue
        values = gather_rows(values, position)
        old_row_0 = target[:, 0].clone()  # [B, ...]
        if index.ndim == 1:
            target.index_copy_(1, rows, values)
        else:
            batch = torch.arange(target.shape[0], device=target.device)[:, None]
            target.index_put_((batch, rows), values)
        restore = all_padding.reshape(-1, *[1] * (old_row_0.ndim - 1))
        target[:, 0] = torch.where(restore, old_row_0, target[:, 0])


def row_mask(index: Tensor, num_rows: int) -> Tensor:
    """Return a bool mask ``[num_rows]`` or ``[B, num_rows]`` that is True on the indexed rows."""
    # An extra last column takes the padding entries and is cut off.
    mask = index.new_zeros(*index.shape[:-1], num_rows + 1, dtype=torch.bool)
    column = torch.where(index < 0, num_rows, index).long()
    return mask.scatter_(-1, column, True)[..., :num_rows]
