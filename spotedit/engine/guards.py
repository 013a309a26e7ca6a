"""Refusals: what else may decide what a transformer computes, and how to go on without it.

The checks run when a pipeline is enabled and at every call. Some things cannot be found by looking
at the model, such as an exported program in place of its forward. They are found while it runs: see
`Forwards.bypassed_layer`.
"""

from typing import Any

from torch import nn

from ..models.spec import Spec
from .processor import SpotProcessor

_TEA = "temporal=spotedit.TeaCache() for the same on the edited tokens"
# The option that replaces a cache of diffusers, by the beginning of its configuration's name.
_INSTEAD = {
    "taylorseer": "temporal=spotedit.TaylorSeer() for the same on the edited tokens",
    "textkv": "cache_text=True for the same in spot steps",
}
# Hooks of diffusers that only move or cast weights.
_HARMLESS_HOOKS = {
    "GroupOffloadingHook",
    "LayerExecutionTrackerHook",
    "LayerwiseCastingHook",
    "LazyPrefetchGroupOffloadingHook",
    "PeftInputAutocastDisableHook",
}


def refuse_unsupported(pipe: Any, spec: Spec) -> None:
    """Raise an error if something else decides what the transformer computes.

    Raises:
        ValueError: there is no transformer yet; or it has a cache of diffusers or cache-dit,
            context parallelism, an IP-Adapter, a foreign attention processor or hook, or a replaced
            forward; or the attention of some blocks cannot be reached.
    """
    transformer = getattr(pipe, "transformer", None)
    if transformer is None:
        raise ValueError(
            "the pipeline has no transformer; expected one: call pipe.load_components()"
        )
    if getattr(transformer, "is_cache_enabled", False):
        name = type(transformer._cache_config).__name__
        raise ValueError(
            f"the transformer has a cache enabled ({name}); expected none: call "
            f"pipe.transformer.disable_cache(), and enable spotedit with {_instead(name)}"
        )
    # the mark on the class alone may belong to another pipeline
    is_cached = getattr(pipe, "_is_cached", False) and hasattr(pipe, "_context_manager")
    if is_cached or getattr(transformer, "_is_cached", False):
        raise ValueError(
            "cache-dit has a cache on the pipeline; expected none: call "
            f"cache_dit.disable_cache(pipe), and enable spotedit with {_TEA}"
        )
    model = getattr(transformer, "_orig_mod", transformer)
    _refuse_forward(type(model))
    _refuse_hooks(model)
    _refuse_processors(model, spec)


def _instead(cache: str) -> str:
    """Say which option replaces a cache, given the name of its configuration or of its hook."""
    plain = cache.lower().replace("_", "")
    return next((option for start, option in _INSTEAD.items() if plain.startswith(start)), _TEA)


def _refuse_forward(model: type) -> None:
    """Refuse a class whose forward a script replaced, for every pipeline of the process."""
    owner = next(cls for cls in model.__mro__ if "forward" in vars(cls))
    forward = vars(owner)["forward"]
    module = getattr(forward, "__module__", None)
    if module != owner.__module__:
        name = f"{module}.{getattr(forward, '__qualname__', type(forward).__name__)}"
        raise ValueError(
            f"{owner.__name__}.forward has been replaced by {name}, as TeaCache's scripts do; "
            f"expected the class's own: put it back, and enable spotedit with {_TEA}"
        )


def _refuse_hooks(model: nn.Module) -> None:
    """Refuse hooks that replace a forward; those that only watch or move weights may stay."""
    for path, module in model.named_modules():
        registry = vars(module).get("_diffusers_hook")
        for name, hook in ({} if registry is None else registry.hooks).items():
            kind = type(hook)
            if kind.__module__.startswith("diffusers."):
                harmless = kind.__name__ in _HARMLESS_HOOKS
            else:
                harmless = not hasattr(hook, "new_forward")
            if not harmless:
                raise ValueError(
                    f"{path or 'the transformer'} has the hook {name!r} ({kind.__name__}), which "
                    "changes what it computes; expected none: load the pipeline without it, or "
                    f"remove it with HookRegistry.remove_hook({name!r}). Instead of a cache, "
                    f"enable spotedit with {_instead(name)}"
                )


def _refuse_processors(model: Any, spec: Spec) -> None:
    """Refuse processors that compute something else than `Spec.project` and `Spec.output`."""
    processors = getattr(model, "attn_processors", {})
    modules = {cls.__module__ for cls in type(model).__mro__}
    for name, processor in processors.items():
        kind = type(processor.stock if isinstance(processor, SpotProcessor) else processor)
        if "IPAdapter" in kind.__name__:
            raise ValueError(
                f"{name} is an IP-Adapter's; expected none: call pipe.unload_ip_adapter()"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise ValueError(
                "the transformer runs in context parallelism; expected one device: load it without"
            )
        called = getattr(kind.__call__, "__module__", None) == kind.__module__
        known = not spec.processors or kind.__name__ in spec.processors
        if not (called and known and kind.__module__ in modules):
            expected = " or ".join(spec.processors) or f"one of {type(model).__module__}"
            raise ValueError(
                f"{name} is a {kind.__module__}.{kind.__qualname__}, which spot steps would not "
                f"call; expected {expected}: set the model's own attention processors again "
                "(pipe.transformer.set_attn_processor), or edit without spotedit"
            )
    for name, blocks in model.named_children():
        if not isinstance(blocks, nn.ModuleList) or not name.endswith(("blocks", "layers")):
            continue
        for number in range(len(blocks)):
            if not any(path.startswith(f"{name}.{number}.") for path in processors):
                raise ValueError(
                    f"{name}.{number} ({type(blocks[number]).__name__}) shows no attention "
                    "processor; expected one in every block: spotedit cannot reach the attention "
                    "of fused or compiled blocks. Load the model with diffusers' own blocks"
                )
    if not processors:
        raise ValueError(
            f"{type(model).__name__} has no attention processors; expected one in every block: "
            "spotedit cannot reach its attention. Load the model with diffusers' own class"
        )
