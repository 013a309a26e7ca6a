"""Make edits that judges overlook: near colours, tiny objects, slight changes.

The scenes use the held-out photographs and the words of `spotedit.tiny.make_scene`, so the editor
can make them. What is hard is to see that something has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spotedit.tiny.scenes import PLACES, Scene, heldout_photos, photo_crop
from spotedit.tiny.shapes import COLOURS, SHAPES, SIZES, Item, draw

CASES = ("near colour", "small", "slight change")
VISIBLE = 8  # a pixel counts as changed if one channel differs by at least this, of 255
_KINDS = {
    "near colour": ("remove", "replace", "add"),
    "small": ("remove", "recolour", "replace"),
    "slight change": ("recolour", "replace"),
}
_RADII = {"near colour": (0.08, 0.2), "small": (0.04, 0.06), "slight change": (0.1, 0.2)}
_TRIES = 60  # number of places that are tried to find a near colour


@dataclass(frozen=True)
class HardScene(Scene):
    """A scene, with the name of what is hard about it: one of `CASES`."""

    case: str


def hard_scene(seed: int, size: int = 128) -> HardScene:
    """Make one scene. Equal arguments give equal scenes; case and kind follow the seed."""
    case = CASES[seed % len(CASES)]
    kinds = _KINDS[case]
    kind = kinds[seed // len(CASES) % len(kinds)]
    rng = np.random.default_rng([7, seed])
    photos = heldout_photos()
    photo = photo_crop(rng, photos[int(rng.integers(len(photos)))], (size, size))
    if case == "near colour":
        before, after, instruction = _near_colour(rng, photo, kind)
    else:
        before, after, instruction = _slight(rng, size, case, kind)
    source, target = photo, photo.copy()
    for picture, item in ((source, before), (target, after)):
        if item is not None:
            draw(picture, item)
    source, target = (np.rint(picture).astype(np.uint8) for picture in (source, target))
    difference = np.abs(source.astype(np.int16) - target).max(axis=-1)
    return HardScene(source, target, instruction, difference >= VISIBLE, kind, case)


def _near_colour(
    rng: np.random.Generator, photo: np.ndarray, kind: str
) -> tuple[Item | None, Item | None, str]:
    """Return an object in the colour of what it covers, before and after the edit.

    The third value is the instruction. None stands for no object.
    """
    size = photo.shape[0]
    radii = None if kind == "add" else _RADII["near colour"]
    colour = _choice(rng, tuple(COLOURS))
    candidates = [replace(_item(rng, size, radii), colour=colour) for _ in range(_TRIES)]
    item = min(candidates, key=lambda candidate: _distance_to_covered(photo, candidate))
    if kind == "remove":
        return item, None, f"remove the {item.name}"
    if kind == "replace":
        shape = _choice(rng, [shape for shape in SHAPES if shape != item.shape])
        new = replace(item, shape=shape)
        return item, new, f"replace the {item.name} with a {new.full_name}"
    (place,) = (name for name, (y, x) in PLACES.items() if (y * size, x * size) == item.centre)
    (scale,) = (name for name, radius in SIZES.items() if radius * size == item.radius)
    return None, item, f"add a {scale} {item.name} at the {place}"


def _slight(
    rng: np.random.Generator, size: int, case: str, kind: str
) -> tuple[Item, Item | None, str]:
    """Return a small object, or one that hardly changes, before and after the edit.

    The third value is the instruction. None stands for no object.
    """
    item = _item(rng, size, _RADII[case])
    if kind == "remove":
        return item, None, f"remove the {item.name}"
    if kind == "replace" and case == "small":
        shape = _choice(rng, [shape for shape in SHAPES if shape != item.shape])
        new = replace(item, shape=shape)
    elif kind == "replace":
        new = replace(item, texture=_choice(rng, ("striped", "dotted")))
    else:
        distances = {name: _distance(COLOURS[name], COLOURS[item.colour]) for name in COLOURS}
        near = sorted(distances, key=lambda name: distances[name])[1]
        new = replace(item, colour=near)
        return item, new, f"recolour the {item.name} to {near}"
    return item, new, f"replace the {item.name} with a {new.full_name}"


def _item(rng: np.random.Generator, size: int, radii: tuple[float, float] | None) -> Item:
    """Make a random plain object; without `radii` it has a named place and a named size."""
    shape, colour = _choice(rng, SHAPES), _choice(rng, tuple(COLOURS))
    if radii is None:
        y, x = PLACES[_choice(rng, tuple(PLACES))]
        centre, radius = (y * size, x * size), SIZES[_choice(rng, tuple(SIZES))] * size
    else:
        radius = float(rng.uniform(*radii)) * size
        y, x = rng.uniform(1.2 * radius, size - 1.2 * radius, 2).tolist()
        centre = y, x
    return Item(shape, colour, "plain", centre, radius)


def _distance_to_covered(photo: np.ndarray, item: Item) -> float:
    """Return the distance of the object's colour from the mean colour of what it covers."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]] + 0.5
    inside = np.hypot(y - item.centre[0], x - item.centre[1]) < item.radius
    return _distance(COLOURS[item.colour], photo[inside].mean(axis=0))


def _distance(a: Sequence[float], b: Sequence[float] | np.ndarray) -> float:
    """Return the Euclidean distance of two colours in 8-bit RGB."""
    return float(np.linalg.norm(np.subtract(a, b)))


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
