"""All changes to a pipeline are made here, and undone here.

`enable` swaps the pipeline's class for a subclass whose `__call__` goes through the handle. While a
call runs, that pipeline sees views in place of its transformer and its scheduler. Through them the
session sees every forward and every step. In a session of several rounds, it also sees a view of
its VAE. Other pipelines may share these objects: they do not see the views, and in their forwards
our attention processors behave like the stock ones.

A view is an object of a subclass that shares the original's attributes; its own state is in slots.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..models.spec import Arguments, Spec
from .call import Hooks
from .component_views import scheduler_view, transformer_view, vae_view
from .processor import SpotProcessor, spot_processor
from .rounds import Round
from .session import Session, no_forward_error
from .views import subclass

Views = dict[str, Any]  # component -> what the running call sees in its place

_LOCK = threading.RLock()  # held while a transformer that may be shared is changed


def swap_class(pipe: Any, call: Callable[..., Any], owner: object, views: Views) -> type:
    """Give `pipe` a subclass of its class whose calls are `call(base, ...)`; returns `base`.

    Copies and pickles of `pipe` are instances of `base`, and so are pipelines made by
    `from_pipe(pipe)` or `type(pipe)(...)`.
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
        "transformer": _view_property("transformer", views),
        "scheduler": _view_property("scheduler", views),
    }
    if not hasattr(base, "vae"):  # a class may have a property of that name
        namespace["vae"] = _view_property("vae", views)
    if hasattr(base, "components"):

        def components(self: Any) -> dict[str, Any]:
            """Return the components themselves, not the running call's views of them."""
            components = base.components.fget(self)
            originals = {name: vars(self)[name] for name in views if name in components}
            return components | originals

        namespace["components"] = property(components)
    pipe.__class__ = subclass(base, namespace)
    return base


def _view_property(name: str, views: Views) -> property:
    """Make a property: the pipeline's attribute `name`, or the running call's view of it."""

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
    """Return the owner that `swap_class` was given for this pipeline, or None."""
    return vars(type(pipe)).get("_spotedit")


def bind(
    base: type, pipe: Any, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a call's arguments by name: those that were passed, and all with their defaults."""
    bound = inspect.signature(base.__call__).bind(pipe, *args, **kwargs)
    passed = _without_self(bound)
    if not hasattr(pipe, "blocks"):
        bound.apply_defaults()
        return passed, _without_self(bound)
    # the blocks of a modular pipeline name its arguments, and its state may hold some of them
    passed |= passed.pop("kwargs", {})
    defaults = {item.name: item.default for item in pipe.blocks.inputs}
    state = passed.get("state")
    return passed, defaults | (state.values if state else {}) | passed


def _without_self(bound: inspect.BoundArguments) -> dict[str, Any]:
    arguments = dict(bound.arguments)
    del arguments["self"]
    return arguments


class RunningCall:
    """Connects a call's views with its session, which begins with the first forward.

    Attributes:
        session: the session, or None before the first forward.
    """

    def __init__(self, begin: Callable[[Arguments], Session]) -> None:
        """`begin` makes the session from the first forward's keyword arguments."""
        self._begin = begin
        self.session: Session | None = None

    def run(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Stand in for a forward of the transformer."""
        if self.session is None:
            self.session = self._begin(kwargs)
        return self.session.run(forward, kwargs)

    def scheduler_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `scheduler.step`."""
        if self.session is None:
            raise no_forward_error()
        return self.session.scheduler_step(step, *args, **kwargs)


@contextmanager
def attached(
    pipe: Any,
    spec: Spec,
    views: Views,
    begin: Callable[[Hooks, Arguments], Session],
    round: Round | None,
) -> Iterator[RunningCall]:
    """Let a session see forwards and scheduler steps, for the duration of the `with` statement.

    Args:
        views: is filled for that time.
        begin: makes the session from our hooks and the first forward's keyword arguments.
        round: knows encodings of earlier calls, or None.
    """
    transformer, scheduler = pipe.transformer, pipe.scheduler
    model = getattr(transformer, "_orig_mod", transformer)
    with ExitStack() as undo:
        hooks = Hooks(
            processors=undo.enter_context(_processors(model, spec)),
            modulated_input=functools.partial(_modulated_input, model, spec),
            stop=functools.partial(_stop, pipe, views, undo),
        )
        call = RunningCall(functools.partial(begin, hooks))
        undo.callback(views.clear)
        views["transformer"] = transformer_view(transformer, call.run, undo)
        views["scheduler"] = scheduler_view(scheduler, call.scheduler_step, undo)
        if round is not None and vars(pipe).get("vae") is not None:
            views["vae"] = vae_view(pipe, round, undo)
        yield call


# -- the transformer, which other pipelines may share


@contextmanager
def _processors(model: Any, spec: Spec) -> Iterator[dict[str, SpotProcessor]]:
    """Install our attention processors for the duration of the `with` statement.

    They may serve several calls at once. The generator yields them by the layers' names.
    """
    processors: dict[str, SpotProcessor] = {}
    try:
        with _LOCK:
            for name in model.attn_processors:
                processors[name] = _install(model, name, spec)
        yield processors
    finally:
        with _LOCK:
            for name, processor in processors.items():
                _uninstall(model, name, processor)


def _install(model: Any, name: str, spec: Spec) -> SpotProcessor:
    attention = model.get_submodule(name.removesuffix(".processor"))
    if not isinstance(attention.processor, SpotProcessor):
        processor = spot_processor(attention.processor)
        attention.set_processor(processor)
        if spec.narrow_block is not None:
            blocks, number, *_ = name.split(".")  # such as "transformer_blocks.3.attn.processor"
            block = model.get_submodule(f"{blocks}.{number}")
            hook = functools.partial(_narrow_block, processor)
            processor.narrow_hook = block.register_forward_pre_hook(hook, with_kwargs=True)
    attention.processor.num_calls += 1
    return attention.processor


def _uninstall(model: Any, name: str, processor: SpotProcessor) -> None:
    attention = model.get_submodule(name.removesuffix(".processor"))
    processor.num_calls -= 1
    if processor.num_calls:
        return
    if attention.processor is processor:  # nobody has set another one meanwhile
        attention.set_processor(processor.stock)
    if processor.narrow_hook is not None:
        processor.narrow_hook.remove()


def _narrow_block(
    processor: Any, block: Any, args: tuple, kwargs: dict[str, Any] | None = None
) -> tuple[tuple, dict[str, Any]] | None:
    """Keep only the rows that a spot forward runs, in arguments of a block that have one per token.

    See `Spec.narrow_block`. Other threads' forwards are left alone. A forward in another thread may
    reach this hook before its flag `with_kwargs` is set, and then `kwargs` is None. Deep-copying
    the model turns `processor` into the stock processor.
    """
    if kwargs is None or not isinstance(processor, SpotProcessor):
        return None
    state = processor.thread.state
    if state is None or state.mode != "spot":
        return None
    assert state.spec.narrow_block is not None
    assert state.image_index is not None
    return args, kwargs | state.spec.narrow_block(kwargs, state.image_index)


class _Reached(Exception):
    """Raised to stop a forward at the first block; carries that block's arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _modulated_input(model: Any, spec: Spec, kwargs: dict[str, Any]) -> Tensor:
    """Run a forward as far as the first block, and return that block's modulated image input.

    The transformer's own hooks and compiled code are bypassed. Forwards of other threads go on.
    """
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


def _stop(pipe: Any, views: Views, undo: ExitStack) -> None:
    """Let the running call's own loop skip its remaining steps, and decode what it has.

    Outside its mask, an inpainting pipeline writes the source at every step, with the noise that
    `scheduler.scale_noise` adds. From here on that adds none.
    """
    undo.callback(setattr, pipe, "_interrupt", False)
    pipe._interrupt = True
    scheduler = views["scheduler"]
    undo.callback(_restorer(scheduler, "scale_noise"))
    scheduler.scale_noise = lambda sample, *args, **kwargs: sample


def _restorer(instance: object, name: str) -> Callable[[], object]:
    """Return a function that puts the instance's attribute `name` back as it is now."""
    attributes = vars(instance)
    if name in attributes:
        return functools.partial(attributes.__setitem__, name, attributes[name])
    return functools.partial(attributes.pop, name, None)
