"""FLUX.1-Kontext's pipeline with defaults that fit the tiny editor."""

import functools
import inspect
from typing import Any

from diffusers import FluxKontextPipeline

NATIVE_SIZE = 128  # pixels; 256 noise and 256 condition tokens
PROMPT_TOKENS = 16

_STOCK = inspect.signature(FluxKontextPipeline.__call__)
_DEFAULTS = {
    "height": NATIVE_SIZE,
    "width": NATIVE_SIZE,
    "max_sequence_length": PROMPT_TOKENS,
    "_auto_resize": False,
}
_SIGNATURE = _STOCK.replace(
    parameters=[
        parameter.replace(default=_DEFAULTS.get(name, parameter.default))
        for name, parameter in _STOCK.parameters.items()
    ]
)


class TinyKontextPipeline(FluxKontextPipeline):
    """The stock pipeline; only the defaults of its call differ.

    Height and width are 128 px, the condition image keeps its own size rounded down to multiples
    of 8 px (`_auto_resize=False`), `max_area` is the area asked for, and prompts take 16 tokens.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = _SIGNATURE.bind(self, *args, **kwargs)
        given = {"height": NATIVE_SIZE, "width": NATIVE_SIZE}
        given |= {name: value for name, value in bound.arguments.items() if value is not None}
        given.setdefault("max_area", given["height"] * given["width"])
        defaults = {name: value for name, value in _DEFAULTS.items() if name not in given}
        given.pop("self")
        return super().__call__(**given, **defaults)

    # not as a decorator: type checkers would take `self` for an argument of the caller
    functools.update_wrapper(__call__, FluxKontextPipeline.__call__)
    __call__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]  # what `inspect` shows
