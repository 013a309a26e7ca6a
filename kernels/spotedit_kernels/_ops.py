"""The namespace in `torch.ops` where the package registers its operations.

The layout for the Hugging Face kernels hub has another file in this place, with a namespace of its
own, so that several versions of the package can be loaded in one process.
"""

from __future__ import annotations

import torch

ops = torch.ops.spotedit


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the name under which to register the operation `op_name`."""
    return f"spotedit::{op_name}"
