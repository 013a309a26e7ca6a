"""Copies of a pipeline's modules that are nobody else's: no hooks, weights present."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn

# what accelerate and diffusers set on a module that they offload or cast
_FOREIGN = {"forward", "_hf_hook", "_old_forward", "_diffusers_hook"}


@contextmanager
def _weights(module: Any) -> Iterator[None]:
    """The module's own parameters and buffers hold their values inside the block.

    Offloaded ones may be on the meta device (accelerate), or in a file (diffusers' groups). No
    forward hook runs, so no component is moved for it.
    """
    hooks = getattr(module, "_diffusers_hook", None)
    group = None if hooks is None else hooks.get_hook("group_offloading")
    if getattr(module, "_hf_hook", None) is not None:
        with align_module_device(module, torch.device("cpu")):
            yield
    elif group is not None:
        group.group.onload_()
        try:
            yield
        finally:
            group.group.offload_()
    else:
        yield


def clean_copy(module: nn.Module) -> nn.Module:
    """A copy with weights of its own, without the hooks that offloading and casting left."""
    copy = type(module).__new__(type(module))
    nn.Module.__init__(copy)
    skipped = (_FOREIGN | vars(copy).keys()) - {"training"}
    vars(copy).update((k, v) for k, v in vars(module).items() if k not in skipped)
    with _weights(module):
        for name, parameter in module._parameters.items():
            own = None if parameter is None else nn.Parameter(parameter.detach().clone(), False)
            copy.register_parameter(name, own)
        for name, buffer in module._buffers.items():
            copy.register_buffer(name, None if buffer is None else buffer.detach().clone())
    for name, child in module._modules.items():
        copy.add_module(name, None if child is None else clean_copy(child))
    return copy


def compute_dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Dtype of the first parameter that arithmetic is done in; 8-bit ones are only stored."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize > 1)
    return next(found, otherwise)
