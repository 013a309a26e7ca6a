"""SpotFusion's weight: how much of a reused token's keys and values comes from the cache.

The paper calls the blend SpotFusion: a reused token's keys and values are
`w cached + (1 - w) condition`, with `w = cos^2(pi (1 - sigma) / 2)`. So the cache counts early and
the condition image counts late (SpotEdit, arXiv 2512.22323, eqs. 7-9 and the text below them).
"""

import math
from collections.abc import Callable, Sequence

from spotedit_kernels import cosine_weight

from ..options.choices import Fusion


def _cosine(sigma: float) -> float:
    return float(cosine_weight(1.0 - sigma))


FUSIONS: dict[str, Callable[[float], float]] = {"cosine": _cosine}


def weights(fusion: Fusion, sigmas: Sequence[float]) -> list[float]:
    """Return the weight of the cached value for each sigma (0..1).

    Args:
        fusion: the name of an entry of `FUSIONS`, or a callable `sigma -> weight`.

    Raises:
        ValueError: the callable returned something that is not a number in [0, 1].
    """
    weight = FUSIONS[fusion] if isinstance(fusion, str) else fusion
    values = [float(weight(sigma)) for sigma in sigmas]
    for sigma, value in zip(sigmas, values, strict=True):
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise ValueError(
                f"fusion(sigma={sigma:.4f}) returned {value}; expected a weight in [0, 1] "
                "(1 = cached value, 0 = condition image)"
            )
    return values
