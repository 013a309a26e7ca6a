"""Sample pictures with instructions that the tiny editor follows."""

from dataclasses import dataclass

from PIL import Image

from ..tiny.scenes import KINDS, make_scene

_SEEDS = dict(zip(KINDS, (0, 4, 3, 1), strict=True))


@dataclass(frozen=True)
class Sample:
    """A picture and an instruction for it."""

    name: str
    picture: Image.Image
    instruction: str


def tiny_samples() -> list[Sample]:
    """Return one held-out scene for each task that the tiny editor was trained on."""
    samples = []
    for kind, seed in _SEEDS.items():
        scene = make_scene(seed, kind=kind)
        samples.append(Sample(kind, scene.source_image, scene.instruction))
    return samples
