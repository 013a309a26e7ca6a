"""What the tests of every pipeline family need of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A random pipeline of real classes, small enough for any machine, and its calls.

    Attributes:
        make: seed -> pipeline in fp32 on the CPU, silent, in eval mode; norms and biases random.
        arguments: keyword arguments of a deterministic call of 8 steps on a grid of 6 x 8 tokens
            (`grid` where the pipeline does not allow that) with `output_type="latent"`; takes
            `seed`, `batch` and further arguments of the call, which win.
        stock: further arguments with which the stock pipeline runs at the size that an enabled one
            takes by itself.
        guided: further arguments that turn classifier-free guidance on; empty: there is none.
        grid: token grid of the output and of the condition image.
        batches: whether a call takes several images.
        prompt: pipeline -> further arguments that `num_images_per_prompt=2` needs, such as a
            prompt as text in place of embeddings.
    """

    make: Callable[[int], Any]
    arguments: Callable[..., dict[str, Any]]
    stock: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] = (6, 8)
    batches: bool = True
    prompt: Callable[[Any], dict[str, Any]] = lambda pipe: {}
