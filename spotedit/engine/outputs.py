"""Read and replace the tensors in what a transformer or a scheduler returns."""

from typing import Any

from torch import Tensor


def sample_of(result: Any) -> Tensor:
    """Return the latents of a scheduler's result, which is a tuple or an output object."""
    return result[0] if isinstance(result, tuple) else result.prev_sample


def with_sample(result: Any, sample: Tensor) -> Any:
    """Put other latents into a scheduler's result, which is a tuple or an output object."""
    if isinstance(result, tuple):
        return (sample, *result[1:])
    result.prev_sample = sample
    return result


def with_velocity(output: Any, velocity: Tensor) -> Any:
    """Put another velocity into a transformer's result, which is a tuple or an output object."""
    if isinstance(output, tuple):
        return (velocity, *output[1:])
    output.sample = velocity
    return output
