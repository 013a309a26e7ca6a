"""Checks that the option dataclasses share."""

import math


def require(ok: bool, options: object, field: str, expected: str) -> None:
    """Raise ValueError unless `ok`, with the field, its value and what was expected."""
    if not ok:
        name = f"{type(options).__name__}.{field}"
        raise ValueError(f"{name} is {getattr(options, field)!r}; expected {expected}")


def is_number(value: object, maximum: float = math.inf) -> bool:
    """Tell whether `value` is a finite number from 0 to `maximum`."""
    return is_finite(value) and 0 <= value <= maximum  # type: ignore[operator]


def is_finite(value: object) -> bool:
    """Tell whether `value` is a finite number. True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value: object, minimum: int) -> bool:
    """Tell whether `value` is an integer of at least `minimum`. True and False are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
