"""Squared distance of predicted clean latents from the source's, one score per token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_rank,
    check_scalar,
    check_shape,
    check_tensors,
)
from ..impl import Impl, choose_impl
from . import reference

__all__ = ["latent_distance"]

_OP = "latent_distance"


def latent_distance(
    x: Tensor,
    y: Tensor,
    *,
    velocity: Tensor | None = None,
    sigma: float | Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return each token's mean squared difference between its clean latents and the source's.

    The clean latents are predicted as ``x - sigma * velocity``, the clean estimate of SpotEdit's
    selector (arXiv 2512.22323, section on SpotSelector: X0 = x_t - t v). Without a velocity, `x`
    is the clean estimate itself. The score is the plain squared error, averaged over the channels.
    The difference is taken before it is squared, so that close latents keep their relative
    accuracy. A NaN or an infinite value makes its own token's score not finite, and no other.
    The kernel reads each of x, velocity and y once and writes nothing but the scores.

    Args:
        x: latents ``[B, N, C]``, with any strides; fp16, bf16, fp32 or fp64.
        y: the source's latents, ``[B, N, C]`` or ``[1, N, C]`` (one source for the batch).
        velocity: ``[B, N, C]``, or None. The dtypes of x, y and velocity may differ. Arithmetic
            is in fp32, and in fp64 if one of the three is fp64.
        sigma: the noise level of x, in [0, 1]: a float or a 0-d tensor on x's device, whose value
            is not checked. It is needed with `velocity`, and only with it.
        impl: "auto", "triton" or "reference"; an explicit one never falls back. fp64 latents need
            the reference.

    Returns:
        fp32 ``[B, N]``.

    Raises:
        TypeError: a dtype or the type of `sigma` is not one of those listed.
        ValueError: a shape or a device does not fit; `x` is empty; only one of `velocity` and
            `sigma` is given; a float `sigma` is not finite; `impl` is unknown.
        RuntimeError: impl="triton" was asked for and cannot run here.
    """
    latents = {"x": x, "y": y}
    if velocity is not None:
        latents["velocity"] = velocity
    _check_latents(latents)
    if (velocity is None) != (sigma is None):
        raise ValueError(
            f"{_OP}: velocity and sigma must be given together, got only "
            f"{'sigma' if velocity is None else 'velocity'}; the clean estimate is "
            f"x - sigma * velocity: pass both, or a clean x and neither."
        )
    sigma = 0.0 if sigma is None else sigma
    check_scalar(_OP, "sigma", sigma, x)
    sigma = sigma if isinstance(sigma, Tensor) else float(sigma)
    # If any tensor is in fp64, so is the arithmetic, and the kernels refuse it.
    widest = next((each for each in latents.values() if each.dtype == torch.float64), x)
    if choose_impl(_OP, impl, widest) == "reference":
        return reference.latent_distance(x, y, velocity, sigma)
    from . import kernel  # not above: it imports Triton

    return kernel.latent_distance(x, y, velocity, sigma)


def _check_latents(latents: dict[str, Tensor]) -> None:
    check_tensors(_OP, **latents)
    x = latents["x"]
    check_rank(_OP, "x", x, "BNC")
    if x.numel() == 0:
        raise ValueError(
            f"{_OP}: x must have at least one image, token and channel, got {tuple(x.shape)}; "
            f"an empty token has no mean: skip the call."
        )
    batch, num_tokens, num_channels = x.shape
    for name, tensor in latents.items():
        check_rank(_OP, name, tensor, "BNC")
        check_dtype(_OP, name, tensor, FLOATS, "convert it with .float()")
        expected_batch, hint = batch, f"{name} must have x's shape"
        if name == "y":
            hint += "; its batch may be 1"
            if tensor.shape[0] == 1:
                expected_batch = 1
        expected = (expected_batch, num_tokens, num_channels)
        check_shape(_OP, name, tensor, expected, "BNC", hint)
    check_device(_OP, x, **latents)
