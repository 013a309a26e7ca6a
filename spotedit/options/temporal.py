"""The methods that leave whole steps out: `TeaCache` and `TaylorSeer`."""

from collections.abc import Sequence
from dataclasses import dataclass

from .validation import is_finite, is_int, is_number, require


@dataclass(frozen=True)
class TeaCache:
    """Leave forwards out while the transformer's input changes little (arXiv 2411.19108).

    From step to step, the relative L1 change of the first block's modulated image input goes
    through a polynomial that predicts the output's change, and is added up. While the sum is below
    `threshold`, the last velocity serves again. The first and the last step are always computed.
    It takes one host synchronisation a step.

    Attributes:
        threshold: 0 leaves no forward out. A threshold belongs to its coefficients; None takes the
            model's.
        coefficients: of the polynomial, the highest power first; None takes the published ones of
            the model's family. `spotedit calibrate` fits others.

    Raises:
        ValueError: a value out of range, with what was expected.
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
        interval: steps from one computed step to the next; 1 leaves no forward out.
        order: of the highest derivative, 0 or more.
        warm_up: steps that are computed first, 1 or more.

    Raises:
        ValueError: a value out of range, with what was expected.
    """

    interval: int = 4
    order: int = 1
    warm_up: int = 2

    def __post_init__(self) -> None:
        for field, low in (("interval", 1), ("order", 0), ("warm_up", 1)):
            require(is_int(getattr(self, field), low), self, field, f"an integer >= {low}")


Temporal = TeaCache | TaylorSeer


def resolve(method: Temporal | None, own: TeaCache, pipeline: str) -> Temporal | None:
    """`method` with the model's values, `own`, where it leaves them open.

    Raises:
        ValueError: it needs coefficients, and none are known for the `pipeline`.
    """
    if not isinstance(method, TeaCache):
        return method
    threshold = own.threshold if method.threshold is None else method.threshold
    coefficients = method.coefficients or own.coefficients
    if coefficients is None:
        raise ValueError(
            f"no TeaCache coefficients are published for {pipeline}; expected "
            "TeaCache(coefficients=...): `spotedit calibrate` fits them, or use TaylorSeer()"
        )
    return TeaCache(threshold, coefficients)
