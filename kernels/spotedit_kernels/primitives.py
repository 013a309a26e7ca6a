"""Helpers that the Triton kernels and their launchers share. Import needs Triton."""

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
def checked_row(p_index, position, m_position, n_rows):
    """Entries of an index at `position`, clamped to 0..n_rows-1, and which of them are real.

    p_index: start of one batch row's entries; position: [X], masked by m_position.
    """
    row = tl.load(p_index + position, mask=m_position, other=-1).to(tl.int64)
    m_row = m_position & (row >= 0) & (row < n_rows)
    return tl.where(m_row, row, 0), m_row


INTERPRETED = not isinstance(checked_row, JITFunction)  # TRITON_INTERPRET=1 was set at import

# PyTorch 2.11's `wrap_triton` raises for an interpreted kernel, which is never traced anyway.
wrap_triton: Callable[[Any], Any] = (lambda kernel: kernel) if INTERPRETED else library.wrap_triton


def launch_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the GPU that holds `tensor` the current one inside the block.

    Triton launches on the current device and its current stream, wherever the arguments are.
    Nothing changes for a tensor on the CPU, nor before CUDA is initialised, as in tracing with
    fake tensors on a machine without a GPU.
    """
    return torch.cuda.device_of(tensor) if torch.cuda.is_initialized() else nullcontext()
