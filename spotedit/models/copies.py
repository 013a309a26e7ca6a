"""Copies of a pipeline's modules that are nobody else's: no hooks, weights present."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate.utils import align_module_device
from safetensors import safe_open
from torch import Tensor, nn

# what accelerate and diffusers set on a module that they offload or cast
_FOREIGN = {"forward", "_hf_hook", "_old_forward", "_diffusers_hook"}


def _group(module: nn.Module) -> Any:
    """The group of diffusers' group offloading whose forward hook is on this module, or None."""
    hooks: Any = getattr(module, "_diffusers_hook", None)
    hook = None if hooks is None else hooks.get_hook("group_offloading")
    return None if hook is None else hook.group


def _read(path: str, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


def _elsewhere(component: nn.Module) -> dict[Tensor, Callable[[], Tensor]]:
    """Offloaded parameter or buffer -> a function that copies its values from where they are kept.

    No hook runs, so that nothing is moved to the device for it.
    """
    found: dict[Tensor, Callable[[], Tensor]] = {}
    for group in filter(None, map(_group, component.modules())):
        found |= {tensor: kept.clone for tensor, kept in group.cpu_param_dict.items()}
        if group.offload_to_disk_path is not None:
            path, keys = group.safetensors_file_path, group.tensor_to_key
            found |= {tensor: partial(_read, path, key) for tensor, key in keys.items()}
    return found


def copy_without_hooks(module: nn.Module, component: nn.Module | None = None) -> nn.Module:
    """A copy with weights of its own, without the hooks that offloading and casting left.

    Args:
        module: of any device; its weights may be on the meta device (accelerate) or in a file.
        component: the pipeline's component that `module` is a part of; None: itself.
    """
    return _copy(module, _elsewhere(module if component is None else component))


def _copy(module: nn.Module, elsewhere: Mapping[Tensor, Callable[[], Tensor]]) -> nn.Module:
    copy = type(module).__new__(type(module))
    nn.Module.__init__(copy)
    skipped = (_FOREIGN | vars(copy).keys()) - {"training"}
    vars(copy).update((k, v) for k, v in vars(module).items() if k not in skipped)

    def own(tensor: Tensor) -> Tensor:
        return elsewhere.get(tensor, tensor.detach().clone)()

    hooked = getattr(module, "_hf_hook", None) is not None
    with align_module_device(module, torch.device("cpu")) if hooked else nullcontext():
        for name, parameter in module._parameters.items():
            value = None if parameter is None else nn.Parameter(own(parameter), False)
            copy.register_parameter(name, value)
        for name, buffer in module._buffers.items():
            copy.register_buffer(name, None if buffer is None else own(buffer))
    for name, child in module._modules.items():
        copy.add_module(name, None if child is None else _copy(child, elsewhere))
    return copy


def weight_of(norm: Any, device: torch.device) -> Tensor | None:
    """The weight of a layer that is never called, so that no hook brings it to `device`."""
    if norm.weight is None or (norm.weight.device == device and _group(norm) is None):
        return norm.weight
    copy: Any = copy_without_hooks(norm)
    return copy.weight.to(device)


def _arrives(module: nn.Module) -> bool:
    """Whether a hook on the module or inside it brings its weights."""
    return any(
        getattr(part, "_hf_hook", None) is not None or _group(part) is not None
        for part in module.modules()
    )


def with_loaded_weights(module: nn.Module, component: nn.Module, device: torch.device) -> Any:
    """`module`, a part of `component`, or a copy where its weights only come to `device` for a
    forward of the component's."""
    here = all(weight.device == device for weight in module.parameters())
    if _group(component) is None and (here or _arrives(module)):
        return module
    return copy_without_hooks(module, component).to(device)


def compute_dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Dtype of the first parameter that arithmetic is done in; 8-bit ones are only stored."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize > 1)
    return next(found, otherwise)
