"""What the Triton kernels share. Imported only where Triton is installed."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

__all__ = ["INTERPRETED", "checked_row"]


@triton.jit
def checked_row(p_index, position, m_position, n_rows):
    """Entries of an index at `position`, clamped to 0..n_rows-1, and which of them are real.

    p_index: start of one batch row's entries; position: [X], masked by m_position.
    """
    row = tl.load(p_index + position, mask=m_position, other=-1).to(tl.int64)
    m_row = m_position & (row >= 0) & (row < n_rows)
    return tl.where(m_row, row, 0), m_row


INTERPRETED = not isinstance(checked_row, JITFunction)  # TRITON_INTERPRET=1 was set at import
