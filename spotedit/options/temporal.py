"""The methods that skip the forward of whole steps: `TeaCache` and `TaylorSeer`."""

from collections.abc import Sequence
from dataclasses import dataclass

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
