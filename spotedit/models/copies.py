"""Copies of a pipeline's modules, without hooks and with their weights present."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate.utils import align_module_device
from safetensors import safe_open
from torch import Tensor, nn

# attributes that accelerate and diffusers set on a module that they offload or cast
_HOOK_ATTRIBUTES = {"forward", "_hf_hook", "_old_forward", "_diffusers_hook"}


def _offload_group(module: nn.Module) -> Any:
    """Return the group of diffusers' group offloading whose hook is on this module, or None."""
    hooks: Any = getattr(module, "_diffusers_hook", None)
    hook = None if hooks is None else hooks.get_hook("group_offloading")
    return None if hook is None else hook.group


def _read_tensor(path: str, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key)


def _loaders(component: nn.Module) -> dict[Tensor, Callable[[], Tensor]]:
    """Return, for every offloaded parameter and buffer, a function that loads a copy of its values.

    No hook runs, so nothing is moved to the device.
    """
    loaders: dict[Tensor, Callable[[], Tensor]] = {}
    for module in component.modules():
        group = _offload_group(module)
        if group is None:
            continue
        for tensor, cpu_values in group.cpu_param_dict.items():
            loaders[tensor] = cpu_values.clone
        if group.offload_to_disk_path is not None:
            for tensor, key in group.tensor_to_key.items():
                loaders[tensor] = partial(_read_tensor, group.safetensors_file_path, key)
    return loaders


def copy_without_hooks(module: nn.Module, component: nn.Module | None = None) -> nn.Module:
    """Return a copy with its own weights, without the hooks that offloading and casting left.

    Args:
        module: a module on any device. Its weights may be on the meta device (accelerate) or in a
            file.
        component: the component of the pipeline to which the module belongs; by default itself.
    """
    return _copy(module, _loaders(module if component is None else component))


def _copy(module: nn.Module, loaders: Mapping[Tensor, Callable[[], Tensor]]) -> nn.Module:
    copy = type(module).__new__(type(module))
    nn.Module.__init__(copy)
    skipped = (_HOOK_ATTRIBUTES | vars(copy).keys()) - {"training"}
    vars(copy).update((name, value) for name, value in vars(module).items() if name not in skipped)

    def copied(tensor: Tensor) -> Tensor:
        load = loaders.get(tensor, tensor.detach().clone)
        return load()

    is_hooked = getattr(module, "_hf_hook", None) is not None
    with align_module_device(module, torch.device("cpu")) if is_hooked else nullcontext():
        for name, parameter in module._parameters.items():
            value = None if parameter is None else nn.Parameter(copied(parameter), False)
            copy.register_parameter(name, value)
        for name, buffer in module._buffers.items():
            copy.register_buffer(name, None if buffer is None else copied(buffer))
    for name, child in module._modules.items():
        copy.add_module(name, None if child is None else _copy(child, loaders))
    return copy


def weight_of(norm: Any, device: torch.device) -> Tensor | None:
    """Return the weight of a layer on `device`.

    The layer is never called, so no hook would bring the weight there.
    """
    if norm.weight is None or (norm.weight.device == device and _offload_group(norm) is None):
        return norm.weight
    copy: Any = copy_without_hooks(norm)
    return copy.weight.to(device)


def _has_offload_hook(module: nn.Module) -> bool:
    """Return whether a hook on the module, or inside it, loads its weights when it is called."""
    return any(
        getattr(part, "_hf_hook", None) is not None or _offload_group(part) is not None
        for part in module.modules()
    )


def with_loaded_weights(module: nn.Module, component: nn.Module, device: torch.device) -> Any:
    """Return a module that can be called on `device`: the given one, or a copy on that device.

    A copy is made if the weights of the module are loaded by nothing but a forward of `component`,
    to which it belongs.
    """
    is_loaded = all(weight.device == device for weight in module.parameters())
    if _offload_group(component) is None and (is_loaded or _has_offload_hook(module)):
        return module
    return copy_without_hooks(module, component).to(device)


def compute_dtype(module: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """Return the dtype of the first floating-point parameter, or `otherwise`.

    8-bit floats are passed over, because they only store weights.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.itemsize > 1:
            return parameter.dtype
    return otherwise
