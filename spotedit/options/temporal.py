"""The methods that skip the forward of whole steps: `TeaCache` and `TaylorSeer`."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .validation import is_finite, is_int, is_number, require


@dataclass(frozen=True)
class TeaCache:
    """Skip forwards while the transformer's input changes little (arXiv 2411.19108).

    At every step, a polynomial predicts the output's change from the relative L1 change of the
    first block's modulated image input. The predicted changes are added up. While the sum is below
    `threshold`, the last velocity is used again. The first and the last step are always computed.
    The method synchronises with the host once a step.

    Attributes:
        threshold: 0 skips no forward. A threshold only has a meaning with the coefficients that it
            was chosen for. None takes the default of the model's family.
        coefficients: coefficients of the polynomial, the highest power first. None takes the
            published ones of the model's family. `spotedit calibrate` fits others.

    Raises:
        ValueError: a value is out of range; the message says what was expected.
    """

    threshold: float | None = None
    coefficients: Sequence[float] | None = None

    def __post_init__(self) -> None:
        require(
            self.threshold is None or is_number(self.threshold),
            self,
            "threshold",
            "a finite number >= 0, or None for the model's own",
        )
        if self.coefficients is None:
            return
        is_list = isinstance(self.coefficients, Sequence) and not isinstance(self.coefficients, str)
        require(
            is_list and len(self.coefficients) > 0 and all(map(is_finite, self.coefficients)),
            self,
            "coefficients",
            "finite numbers, the highest power first, or None",
        )
        object.__setattr__(self, "coefficients", tuple(self.coefficients))


@dataclass(frozen=True)
class TaylorSeer:
    """Predict most velocities from finite differences of the computed ones (arXiv 2503.06923).

    Attributes:
        interval: number of steps from one computed step to the next; 1 skips no forward.
        order: order of the highest derivative, 0 or more.
        warm_up: number of steps that are computed first, 1 or more.

    Raises:
        ValueError: a value is out of range; the message says what was expected.
    """

    interval: int = 4
    order: int = 1
    warm_up: int = 2

    def __post_init__(self) -> None:
        for field, low in (("interval", 1), ("order", 0), ("warm_up", 1)):
            require(is_int(getattr(self, field), low), self, field, f"an integer >= {low}")


Temporal = TeaCache | TaylorSeer
_METHODS = {"TeaCache": TeaCache, "TaylorSeer": TaylorSeer}


def temporal_from(value: object) -> Temporal | None:
    """Return the method that a command line or a file describes.

    Args:
        value: text such as "TaylorSeer" or "TaylorSeer(interval=3)"; a table of the `method` and
            its arguments, such as ``{"method": "TaylorSeer", "interval": 3}``; "None" or None for
            no method.

    Raises:
        ValueError: `value` has another form, or an argument is out of range.
    """
    if value is None or value == "None":
        return None
    methods = " or ".join(_METHODS)
    expected = (
        f"{value!r}; expected {methods}, optionally with keyword arguments, "
        "as in TaylorSeer(interval=3)"
    )
    try:
        if isinstance(value, Mapping):
            arguments = dict(value)
            return _METHODS[arguments.pop("method")](**arguments)
        name, arguments = _parse_call(str(value))
        return _METHODS[name](**arguments)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError(expected) from error


def _parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the keyword arguments of a call. Its arguments are literals.

    Raises:
        SyntaxError, ValueError: `text` has another form.
    """
    call = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise SyntaxError(f"{text!r} is not a name with keyword arguments")
    arguments = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    return call.func.id, arguments


def resolve(method: Temporal | None, defaults: TeaCache, pipeline: str) -> Temporal | None:
    """Return `method` with the `defaults` of the model's family in the fields that are None.

    Raises:
        ValueError: the method needs coefficients, and none are known for the `pipeline`.
    """
    if not isinstance(method, TeaCache):
        return method
    threshold = defaults.threshold if method.threshold is None else method.threshold
    coefficients = method.coefficients or defaults.coefficients
    if coefficients is None:
        raise ValueError(
            f"no TeaCache coefficients are published for {pipeline}; expected "
            "TeaCache(coefficients=...): `spotedit calibrate` fits them, or use TaylorSeer()"
        )
    return TeaCache(threshold, coefficients)
