"""How far apart two pictures or latents are."""

from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of `expected`."""
    return float((actual - expected).norm() / expected.norm())
