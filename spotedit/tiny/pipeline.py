"""The FLUX.1-Kontext pipeline with defaults that fit the tiny editor."""

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
    """The stock pipeline with other default arguments of its call.

    Height and width are 128 px and prompts have 16 tokens. `max_area` is height x width. The
    condition image keeps its size, rounded down to multiples of 8 px (`_auto_resize=False`).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = _SIGNATURE.bind(self, *args, **kwargs)
        arguments = dict(_DEFAULTS)
        arguments |= {name: value for name, value in bound.arguments.items() if value is not None}
        arguments.setdefault("max_area", arguments["height"] * arguments["width"])
        arguments.pop("self")
        return super().__call__(**arguments)

    # With a decorator, type checkers would take `self` for an argument of the caller.
    functools.update_wrapper(__call__, FluxKontextPipeline.__call__)
    __call__.__signature__ = _SIGNATURE  # type: ignore[attr-defined]  # shown by `inspect`
