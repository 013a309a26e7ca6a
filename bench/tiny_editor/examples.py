"""Draw training examples of the toy world."""

from collections.abc import Callable, Iterator

import numpy as np

from spotedit.tiny.world import make_scene

Example = tuple[np.ndarray, np.ndarray, np.ndarray, str]  # source, target, changed, prompt
Draw = Callable[[range, int], Iterator[Example]]  # (seeds, side in pixels) -> examples; picklable
_IDENTITY_EVERY = 32


def world_scenes(seeds: range, size: int) -> Iterator[Example]:
    """Draw the training scenes of these seeds.

    One in 32 has an empty prompt and its source as target.
    """
    for seed in seeds:
        scene = make_scene(seed, size=size, split="train")
        if seed % _IDENTITY_EVERY == _IDENTITY_EVERY - 1:
            yield scene.source, scene.source, np.zeros_like(scene.mask), ""
        else:
            yield scene.source, scene.target, scene.mask, scene.instruction
