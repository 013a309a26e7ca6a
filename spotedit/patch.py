"""The only file that changes a pipeline, and the way back from every change.

`enable` swaps the pipeline's class for a subclass whose `__call__` goes through the handle. The
transformer and the scheduler are changed only while a call runs.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from .models.spec import Spec
from .processor import Forward, SpotProcessor, spot_processor
from .session import Session

_SESSION = "_spotedit_session"
_TEA = "temporal=spotedit.TeaCache() for the same on the edited tokens"
_INSTEAD = {  # of diffusers' caches
    "TaylorSeerCacheConfig": "temporal=spotedit.TaylorSeer() for the same on the edited tokens",
    "TextKVCacheConfig": "cache_text=True for the same in spot steps",
}


def swap_class(pipe: Any, call: Callable[..., Any], owner: object) -> type:
    """Give `pipe` a subclass of its class whose calls are `call(base, ...)`; returns `base`."""
    base = type(pipe)

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipe:  # made by a class method or a copy: not enabled
            return base.__call__(self, *args, **kwargs)
        return call(base, *args, **kwargs)

    namespace = {
        "__call__": __call__,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "_spotedit": owner,
    }
    pipe.__class__ = type(base.__name__, (base,), namespace)
    return base


def owner_of(pipe: object) -> Any:
    """What `swap_class` was given for this pipeline, or None."""
    return vars(type(pipe)).get("_spotedit")


def bind(
    base: type, pipe: Any, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call's arguments by name: as given, and with the pipeline's defaults."""
    bound = inspect.signature(base.__call__).bind(pipe, *args, **kwargs)
    given = dict(list(bound.arguments.items())[1:])
    if hasattr(pipe, "blocks"):  # a modular pipeline, of arguments that its blocks name
        given |= given.pop("kwargs", {})
        defaults = {item.name: item.default for item in pipe.blocks.inputs}
        state = given.get("state")
        return given, defaults | (state.values if state else {}) | given
    bound.apply_defaults()
    return given, dict(list(bound.arguments.items())[1:])


def refuse(pipe: Any) -> None:
    """Raise where something else owns the transformer's forward.

    Raises:
        ValueError: a cache of diffusers or cache-dit, context parallelism or an IP-Adapter is in
            use, or a modular pipeline has no transformer yet.
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
            f"pipe.transformer.disable_cache(), and enable spotedit with {_INSTEAD.get(name, _TEA)}"
        )
    # the class's mark alone may be another pipeline's
    own = getattr(pipe, "_is_cached", False) and hasattr(pipe, "_context_manager")
    if own or getattr(transformer, "_is_cached", False):
        raise ValueError(
            "cache-dit has a cache on the pipeline; expected none: call "
            f"cache_dit.disable_cache(pipe), and enable spotedit with {_TEA}"
        )
    for name, processor in transformer.attn_processors.items():
        if isinstance(processor, SpotProcessor):
            raise ValueError(
                "another call is using the transformer; wait for it, or give this pipeline its own"
            )
        if "IPAdapter" in type(processor).__name__:
            raise ValueError(
                f"{name} is an IP-Adapter's; expected none: call pipe.unload_ip_adapter()"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise ValueError(
                "the transformer runs in context parallelism; expected one device: load it without"
            )


@functools.cache
def _watched(base: type) -> type:
    """A subclass of a transformer's class whose calls go through the instance's session.

    The same one for every call: compiled code is valid for one class. A subclass, because hooks are
    part of what `module.compile()` compiles.
    """

    @functools.wraps(base.__call__)
    def __call__(self: Any, **kwargs: Any) -> Any:
        return vars(self)[_SESSION].run(functools.partial(base.__call__, self), kwargs)

    namespace = {"__call__": __call__, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), namespace)


class _Reached(Exception):
    """A forward came to the first block, with these arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _modulated(transformer: Any, spec: Spec, kwargs: dict[str, Any]) -> Tensor:
    """The first block's modulated image input, of a forward that ends there. No hook of the
    transformer's own runs, and nothing compiled."""
    model = getattr(transformer, "_orig_mod", transformer)
    block, base = model.transformer_blocks[0], type(model.transformer_blocks[0])

    def stop(self: Any, **arguments: Any) -> None:
        raise _Reached(arguments)

    block.__class__ = type(base.__name__, (base,), {"__call__": stop})
    try:
        model.forward(**kwargs)
    except _Reached as reached:
        arguments = reached.arguments
    finally:
        block.__class__ = base
    assert spec.modulated is not None
    return spec.modulated(block, arguments)


@contextmanager
def attached(pipe: Any, session: Session) -> Iterator[None]:
    """Let `session` see the transformer's forwards and the scheduler's steps in a block."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    base: type = type(transformer)
    stock, spec = transformer.attn_processors, session.spec
    session.layers = {
        name: spot_processor(processor, spec, session.config.impl, session.told)
        for name, processor in stock.items()
    }
    with ExitStack() as undo:
        undo.callback(transformer.set_attn_processor, dict(stock))
        transformer.set_attn_processor(dict(session.layers))  # it empties the dict
        if spec.narrow_block is not None:
            for block in transformer.transformer_blocks:
                hook = functools.partial(_narrow_block, spec.narrow_block, session.told)
                undo.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        undo.callback(_restore(transformer, _SESSION))
        vars(transformer)[_SESSION] = session
        undo.callback(setattr, transformer, "__class__", base)
        transformer.__class__ = _watched(base)
        step = scheduler.step

        @functools.wraps(step)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return session.scheduler_step(step, *args, **kwargs)

        undo.callback(_restore(scheduler, "step"))
        scheduler.step = wrapper
        session.modulated = functools.partial(_modulated, transformer, spec)
        session.stop = functools.partial(_stop, pipe, undo)
        yield


def _stop(pipe: Any, undo: ExitStack) -> None:
    """Let the running call's own loop skip its remaining steps, and decode what it has.

    Inpainting pipelines put the source, noised for the next step, where nothing may change: from
    here on it gets no noise.
    """
    undo.callback(setattr, pipe, "_interrupt", False)
    pipe._interrupt = True
    undo.callback(_restore(pipe.scheduler, "scale_noise"))
    pipe.scheduler.scale_noise = lambda sample, *args, **kwargs: sample


def _narrow_block(
    narrow: Callable[..., dict[str, Any]], forward: Forward, module: Any, args: tuple, kwargs: dict
) -> tuple[tuple, dict] | None:
    if forward.mode != "spot":
        return None
    return args, kwargs | narrow(kwargs, forward.index)


def _restore(instance: object, name: str) -> Callable[[], None]:
    """A function that puts the instance's attribute `name` back as it is now."""
    attributes = vars(instance)
    if name in attributes:
        return functools.partial(attributes.__setitem__, name, attributes[name])
    return lambda: attributes.pop(name, None) and None
