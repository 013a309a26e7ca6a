"""The only file that changes a pipeline, and the way back from every change.

`enable` swaps the pipeline's class for a subclass whose `__call__` goes through the handle. While a
call runs, that pipeline sees views in place of its transformer and its scheduler, through which the
session learns of every forward and step. Other pipelines may share both objects: they do not see
the views, and the attention processors that a call installs are the stock ones for their forwards.
"""

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor

from ..models.spec import Spec
from .processor import SpotProcessor, spot_processor
from .session import Session
from .views import subclass, view

Views = dict[str, Any]  # component -> what the running call sees in its place

_LOCK = threading.RLock()  # held while a transformer that may be shared is changed


def swap_class(pipe: Any, call: Callable[..., Any], owner: object, views: Views) -> type:
    """Give `pipe` a subclass of its class whose calls are `call(base, ...)`; returns `base`.

    Copies, pickles, and pipelines made from it or by its class are of the class `base`.
    """
    base: Any = type(pipe)

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs)

    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(base, *args, **kwargs)

    namespace = {
        "__new__": new,
        "__call__": __call__,
        "_spotedit": owner,
        "transformer": _viewed("transformer", views),
        "scheduler": _viewed("scheduler", views),
    }
    if hasattr(base, "components"):

        def components(self: Any) -> dict[str, Any]:
            found = base.components.fget(self)
            return found | {name: vars(self)[name] for name in views if name in found}

        namespace["components"] = property(components)
    pipe.__class__ = subclass(base, namespace)
    return base


def _viewed(name: str, views: Views) -> property:
    """A pipeline's attribute `name`, or the running call's view in its place."""

    def get(self: Any) -> Any:
        if name not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return views[name] if name in views else vars(self)[name]

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value

    def delete(self: Any) -> None:
        del vars(self)[name]

    return property(get, put, delete)


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


@contextmanager
def attached(pipe: Any, session: Session, views: Views) -> Iterator[None]:
    """Let `session` see the transformer's forwards and the scheduler's steps in a block."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    model = getattr(transformer, "_orig_mod", transformer)
    with ExitStack() as undo:
        session.layers = undo.enter_context(_processors(model, session.spec))
        session.modulated = functools.partial(_modulated, model, session.spec)
        undo.callback(views.clear)
        views["transformer"] = _transformer_view(transformer, session, undo)
        views["scheduler"] = own = _scheduler_view(scheduler, session, undo)
        session.stop = functools.partial(_stop, pipe, own, undo)
        undo.callback(delattr, session, "stop")
        yield


# -- the transformer, which other pipelines may share


@functools.cache
def _transformer_class(base: Any) -> Any:
    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs |= zip(inspect.signature(self.forward).parameters, args, strict=False)
        return self._spotedit_run(kwargs)

    return subclass(base, {"__slots__": ("_spotedit_run",), "__call__": __call__})


def _transformer_view(transformer: Any, session: Session, undo: ExitStack) -> Any:
    """Make a view of the transformer that calls `session`; after the call, the transformer."""
    base: Any = type(transformer)
    stock = functools.partial(base.__call__, transformer)
    run = functools.partial(session.run, stock)
    own = view(transformer, _transformer_class(base), _spotedit_run=run)
    undo.callback(object.__setattr__, own, "_spotedit_run", lambda kwargs: stock(**kwargs))
    return own


@contextmanager
def _processors(model: Any, spec: Spec) -> Iterator[dict[str, SpotProcessor]]:
    """Install our attention processors in a block; they may serve several calls at once.

    Yields them by the layers' names.
    """
    layers: dict[str, SpotProcessor] = {}
    try:
        with _LOCK:
            for name in model.attn_processors:
                layers[name] = _install(model, name, spec)
        yield layers
    finally:
        with _LOCK:
            for name, layer in layers.items():
                _uninstall(model, name, layer)


def _install(model: Any, name: str, spec: Spec) -> SpotProcessor:
    attention = model.get_submodule(name.removesuffix(".processor"))
    if not isinstance(attention.processor, SpotProcessor):
        layer = spot_processor(attention.processor)
        attention.set_processor(layer)
        if spec.narrow_block is not None:
            block = model.get_submodule(".".join(name.split(".")[:2]))
            hook = functools.partial(_narrow_block, layer)
            layer.narrowing = block.register_forward_pre_hook(hook, with_kwargs=True)
    attention.processor.calls += 1
    return attention.processor


def _uninstall(model: Any, name: str, layer: SpotProcessor) -> None:
    attention = model.get_submodule(name.removesuffix(".processor"))
    layer.calls -= 1
    if layer.calls:
        return
    if attention.processor is layer:  # nobody set another one meanwhile
        attention.set_processor(layer.stock)
    if layer.narrowing is not None:
        layer.narrowing.remove()


def _narrow_block(
    layer: Any, block: Any, args: tuple, kwargs: dict[str, Any] | None = None
) -> tuple[tuple, dict[str, Any]] | None:
    """Cut a block's arguments to a spot forward's rows, see `Spec.narrow_block`.

    Another thread's forward may come without `kwargs`, in the moment in which this hook is set.
    """
    if kwargs is None or not isinstance(layer, SpotProcessor):  # a copy's layer is a stock one
        return None
    forward = layer.here.forward
    if forward is None or forward.mode != "spot":
        return None
    assert forward.spec.narrow_block is not None
    assert forward.index is not None
    return args, kwargs | forward.spec.narrow_block(kwargs, forward.index)


class _Reached(Exception):
    """Raised to stop a forward at the first block; carries that block's arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _modulated(model: Any, spec: Spec, kwargs: dict[str, Any]) -> Tensor:
    """The first block's modulated image input, of a forward that ends there. No hook of the
    transformer's own runs, and nothing compiled. Other threads' forwards go on."""
    block, thread = model.transformer_blocks[0], threading.get_ident()

    with _LOCK:
        base = type(block)

        def stop(self: Any, *args: Any, **arguments: Any) -> Any:
            if threading.get_ident() != thread:
                return base.__call__(self, *args, **arguments)
            raise _Reached(arguments)

        block.__class__ = subclass(base, {"__call__": stop})
        try:
            model.forward(**kwargs)
        except _Reached as reached:
            arguments = reached.arguments
        finally:
            block.__class__ = base
    assert spec.modulated is not None
    return spec.modulated(block, arguments)


# -- the scheduler


@functools.cache
def _scheduler_class(base: Any) -> Any:
    step = property(lambda self: self._spotedit_step)  # also where the instance has a `step`
    return subclass(base, {"__slots__": ("_spotedit_step",), "step": step})


def _scheduler_view(scheduler: Any, session: Session, undo: ExitStack) -> Any:
    """Make a copy of the scheduler for one call, whose steps go through `session`.

    A scheduler counts its steps, so that two calls that run at once need two. One whose `step` was
    replaced on the instance is not copied, as the replacement may belong to it; nor is one that
    holds what cannot be copied. Such a scheduler must not serve two calls at once.
    """
    base: Any = type(scheduler)
    own = view(scheduler, _scheduler_class(base))
    if "step" not in vars(scheduler):
        with suppress(TypeError):
            object.__setattr__(own, "__dict__", copy.deepcopy(vars(scheduler)))
    stock = vars(scheduler).get("step") or functools.partial(base.step, own)

    @functools.wraps(base.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return session.scheduler_step(stock, *args, **kwargs)

    # diffusers looks at the parameters of `step`, without `self`
    step.__signature__ = inspect.signature(scheduler.step)  # type: ignore[attr-defined]
    object.__setattr__(own, "_spotedit_step", step)
    undo.callback(object.__setattr__, own, "_spotedit_step", stock)
    return own


def _stop(pipe: Any, scheduler: Any, undo: ExitStack) -> None:
    """Let the running call's own loop skip its remaining steps, and decode what it has.

    Inpainting pipelines put the source, noised for the next step, where nothing may change: from
    here on it gets no noise.
    """
    undo.callback(setattr, pipe, "_interrupt", False)
    pipe._interrupt = True
    undo.callback(_restore(scheduler, "scale_noise"))
    scheduler.scale_noise = lambda sample, *args, **kwargs: sample


def _restore(instance: object, name: str) -> Callable[[], object]:
    """A function that puts the instance's attribute `name` back as it is now."""
    attributes = vars(instance)
    if name in attributes:
        return functools.partial(attributes.__setitem__, name, attributes[name])
    return functools.partial(attributes.pop, name, None)
