"""The views that a running call's pipeline sees in place of its components.

Each lives for one call. Whoever keeps a view for longer gets the component's own behaviour from it.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from .rounds import Round
from .views import subclass, view

# -- the transformer


@functools.cache
def _transformer_class(base: Any) -> Any:
    @functools.wraps(base.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs |= zip(inspect.signature(self.forward).parameters, args, strict=False)
        return self._spotedit_run(kwargs)

    return subclass(base, {"__slots__": ("_spotedit_run",), "__call__": __call__})


def transformer_view(
    transformer: Any, run: Callable[[Callable[..., Any], dict[str, Any]], Any], undo: ExitStack
) -> Any:
    """Make a view of the transformer whose forwards are `run(stock forward, arguments)`."""
    base: Any = type(transformer)
    stock = functools.partial(base.__call__, transformer)
    viewed = view(
        transformer, _transformer_class(base), _spotedit_run=functools.partial(run, stock)
    )
    undo.callback(object.__setattr__, viewed, "_spotedit_run", lambda kwargs: stock(**kwargs))
    return viewed


# -- the scheduler


@functools.cache
def _scheduler_class(base: Any) -> Any:
    step = property(lambda self: self._spotedit_step)  # hides a `step` of the instance as well
    return subclass(base, {"__slots__": ("_spotedit_step",), "step": step})


def scheduler_view(scheduler: Any, take_step: Callable[..., Any], undo: ExitStack) -> Any:
    """Make a view of the scheduler whose steps are `take_step(stock step, ...)`.

    The view has a copy of the scheduler's state, because a scheduler counts its steps, and two
    calls may run at once. It shares the state in two cases: something in it cannot be copied, or
    `step` was replaced on the instance, and the replacement may be bound to that instance. Such a
    scheduler must not serve two calls at once.
    """
    base: Any = type(scheduler)
    viewed = view(scheduler, _scheduler_class(base))
    if "step" not in vars(scheduler):
        with suppress(TypeError):
            object.__setattr__(viewed, "__dict__", copy.deepcopy(vars(scheduler)))
    stock = vars(scheduler).get("step") or functools.partial(base.step, viewed)

    @functools.wraps(base.step)
    def step(*args: Any, **kwargs: Any) -> Any:
        return take_step(stock, *args, **kwargs)

    # diffusers looks at the parameters of `step`, without `self`
    step.__signature__ = inspect.signature(scheduler.step)  # type: ignore[attr-defined]
    object.__setattr__(viewed, "_spotedit_step", step)
    undo.callback(object.__setattr__, viewed, "_spotedit_step", stock)
    return viewed


# -- the VAE, in a session


@functools.cache
def _vae_class(base: Any) -> Any:
    encode = property(lambda self: self._spotedit_encode)  # hides an `encode` of the instance too
    return subclass(base, {"__slots__": ("_spotedit_encode",), "encode": encode})


def vae_view(pipe: Any, round: Round, undo: ExitStack) -> Any:
    """Make a view of the pipeline's VAE that encodes only what `round` does not know yet."""
    vae = pipe.vae
    base: Any = type(vae)
    stock = vae.encode

    @functools.wraps(stock)
    def encode(*args: Any, **kwargs: Any) -> Any:
        return round.encode(pipe, stock, *args, **kwargs)

    viewed = view(vae, _vae_class(base), _spotedit_encode=encode)
    undo.callback(object.__setattr__, viewed, "_spotedit_encode", stock)
    return viewed
