"""What the tests need to know about a pipeline family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Makes a small random pipeline from the real classes, and the arguments of its calls.

    Attributes:
        make: takes a seed. Returns a pipeline in fp32 on the CPU, in eval mode, without progress
            bars, and with random norms and biases.
        arguments: takes `seed`, `batch` and further arguments of the call, which override its own.
            Returns the arguments of a deterministic call of 8 steps on `grid`, with
            `output_type="latent"`.
        stock: further arguments that make the stock pipeline run at the size that an enabled one
            chooses.
        guided: further arguments that turn classifier-free guidance on. They are empty if the
            pipeline has none.
        grid: token grid of the output and of the condition image.
        batches: whether a call takes several images.
        prompt: takes the pipeline. Returns further arguments that `num_images_per_prompt=2` needs,
            such as a prompt as text in place of embeddings.
    """

    make: Callable[[int], Any]
    arguments: Callable[..., dict[str, Any]]
    stock: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] = (6, 8)
    batches: bool = True
    prompt: Callable[[Any], dict[str, Any]] = lambda pipe: {}
