"""Helpers that the Triton kernels and their launchers share. Importing this file imports Triton."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library
from triton.runtime.jit import JITFunction

__all__ = ["INTERPRETED", "checked_row", "launch_device", "wrap_triton"]


@triton.jit
def checked_row(p_index, position, m_position, num_rows):
    """Load row numbers from an index, and check them against 0..num_rows-1.

    p_index points to one batch row's entries; position [X] selects entries, masked by m_position.
    Returns the rows [X], int64, where an invalid one is replaced by 0, and the mask of valid rows.
    """
    row = tl.load(p_index + position, mask=m_position, other=-1).to(tl.int64)
    m_row = m_position & (row >= 0) & (row < num_rows)
    return tl.where(m_row, row, 0), m_row


# With TRITON_INTERPRET=1, `triton.jit` makes functions of another class.
INTERPRETED = not isinstance(checked_row, JITFunction)


def _unwrapped(kernel: Any) -> Any:
    """Return `kernel` itself, because PyTorch 2.11's `wrap_triton` refuses an interpreted one."""
    return kernel


wrap_triton: Callable[[Any], Any] = _unwrapped if INTERPRETED else library.wrap_triton


def launch_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the GPU that holds `tensor` the current one inside the block.

    Triton launches on the current device and its current stream, wherever the arguments are. The
    block changes nothing for a tensor on the CPU. It also changes nothing before CUDA is
    initialised, for instance when fake tensors are traced on a machine without a GPU.
    """
    return torch.cuda.device_of(tensor) if torch.cuda.is_initialized() else nullcontext()
