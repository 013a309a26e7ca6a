"""Make synthetic edits with a known truth: objects composited on photographs, and an instruction.

`make_scene(seed)` is deterministic. Held-out scenes use the six photographs that ship with the
package; the tiny editor was never trained on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from .shapes import COLOURS, SHAPES, SIZES, TEXTURES, Item, draw

KINDS = ("recolour", "remove", "replace", "add")
SPLITS = ("train", "heldout")
PLACES = {
    "top left": (0.24, 0.24), "top": (0.24, 0.5), "top right": (0.24, 0.76),
    "left": (0.5, 0.24), "centre": (0.5, 0.5), "right": (0.5, 0.76),
    "bottom left": (0.76, 0.24), "bottom": (0.76, 0.5), "bottom right": (0.76, 0.76),
}  # fmt: skip
MAX_AREA = 0.6  # a larger object would not fit into the picture
_MIN_COLOUR_DISTANCE = 150.0  # between old and new colour, Euclidean in 8-bit RGB
_NUM_TRIES = 60


@dataclass(frozen=True)
class Scene:
    """A source picture, an instruction, and the picture that obeys it.

    `source` and `target` are uint8 [H, W, 3]; `mask` is bool [H, W], True where they differ.
    """

    source: np.ndarray
    target: np.ndarray
    instruction: str
    mask: np.ndarray
    kind: str

    @property
    def source_image(self) -> Image.Image:
        return Image.fromarray(self.source)

    @property
    def target_image(self) -> Image.Image:
        return Image.fromarray(self.target)


@lru_cache(maxsize=1)
def heldout_photos() -> tuple[np.ndarray, ...]:
    """Return the packaged photographs as uint8 [H, W, 3], sorted by name."""
    folder = files(__package__) / "photos"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".jpg"))
    pictures = []
    for name in names:
        with (folder / name).open("rb") as file:
            pictures.append(np.asarray(Image.open(file).convert("RGB")))
    return tuple(pictures)


def photo_crop(rng: np.random.Generator, photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a random crop of the uint8 photograph, mirrored half the time.

    The crop is scaled to `size` and returned as float [H, W, 3].
    """
    height, width = size
    largest = min(photo.shape[0] / height, photo.shape[1] / width)
    zoom = rng.uniform(min(1.0, 0.5 * largest), largest)
    crop_h, crop_w = zoom * height, zoom * width
    top = rng.uniform(0, photo.shape[0] - crop_h)
    left = rng.uniform(0, photo.shape[1] - crop_w)
    box = (left, top, left + crop_w, top + crop_h)
    resized = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC, box=box)
    crop = np.asarray(resized, dtype=np.float64)
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop.copy()


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _texture(rng: np.random.Generator) -> str:
    return _choice(rng, TEXTURES) if rng.random() < 0.5 else "plain"


def _is_apart(item: Item, others: Sequence[Item]) -> bool:
    """Return whether the item overlaps none of the others."""
    return all(
        np.hypot(item.centre[0] - other.centre[0], item.centre[1] - other.centre[1])
        > 1.12 * (item.radius + other.radius)
        for other in others
    )


def _scatter(
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    existing: Sequence[Item] = (),
    first_radius: float | None = None,
) -> list[Item]:
    """Draw up to `count` items with distinct names, apart from each other and from `existing`.

    `first_radius` is the radius of the first item as a share of the shorter side. The radii of the
    others are random.
    """
    items: list[Item] = []
    for _ in range(_NUM_TRIES):
        if len(items) == count:
            break
        radius = min(size) * rng.uniform(min(SIZES.values()), max(SIZES.values()))
        if first_radius is not None and not items:
            radius = min(size) * first_radius
        y, x = (float(rng.uniform(1.1 * radius, side - 1.1 * radius)) for side in size)
        item = Item(
            _choice(rng, SHAPES), _choice(rng, tuple(COLOURS)), _texture(rng), (y, x), radius
        )
        others = [*existing, *items]
        if _is_apart(item, others) and item.name not in {other.name for other in others}:
            items.append(item)
    return items


def _distant_colour(rng: np.random.Generator, old: str) -> str:
    distance = {c: np.linalg.norm(np.subtract(COLOURS[c], COLOURS[old])) for c in COLOURS}
    return _choice(rng, [c for c in COLOURS if distance[c] >= _MIN_COLOUR_DISTANCE])


def _edit(
    rng: np.random.Generator, kind: str, size: tuple[int, int], radius: float | None
) -> tuple[list[Item], list[Item], str]:
    """Return the items before the edit, those after it, and the instruction.

    `radius` is that of the edited item as a share of the shorter side; None draws it at random.
    """
    if kind == "add":
        place, scale = _choice(rng, tuple(PLACES)), _choice(rng, tuple(SIZES))
        centre = PLACES[place][0] * size[0], PLACES[place][1] * size[1]
        new = Item(
            _choice(rng, SHAPES), _choice(rng, tuple(COLOURS)), _texture(rng),
            centre, SIZES[scale] * min(size),
        )  # fmt: skip
        before = _scatter(rng, int(rng.integers(0, 3)), size, [new])
        return before, [*before, new], f"add a {scale} {new.full_name} at the {place}"
    before = _scatter(rng, int(rng.integers(1, 4)), size, first_radius=radius)
    old, rest = before[0], before[1:]
    if kind == "remove":
        return before, rest, f"remove the {old.name}"
    colour = _distant_colour(rng, old.colour)
    if kind == "recolour":
        new = Item(old.shape, colour, old.texture, old.centre, old.radius)
        return before, [new, *rest], f"recolour the {old.name} to {colour}"
    shape = _choice(rng, [s for s in SHAPES if s != old.shape])
    new = Item(shape, colour, _texture(rng), old.centre, old.radius)
    return before, [new, *rest], f"replace the {old.name} with a {new.full_name}"


def make_scene(
    seed: int,
    kind: str | None = None,
    size: int | tuple[int, int] = 128,
    split: str = "heldout",
    photos: Sequence[np.ndarray] | None = None,
    area: float | None = None,
) -> Scene:
    """Make one scene; equal arguments give equal scenes.

    Args:
        seed: any non-negative integer. The two splits draw from separate streams.
        kind: one of `KINDS`; None draws one from the seed.
        size: side, or (height, width), in pixels.
        split: "heldout", or "train", which needs `photos`.
        photos: uint8 [H, W, 3] backgrounds; None uses the packaged held-out photographs.
        area: area of a disc with the edited object's radius, as a share of a square with the
            picture's shorter side. It must be above 0 and at most `MAX_AREA`; None draws 0.05 to
            0.15 from the seed. Added objects ignore it: their instruction names their size.

    Raises:
        ValueError: the kind or the split is unknown, the training split has no photographs, or the
            area is out of range.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {KINDS}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {SPLITS}")
    if photos is None:
        if split == "train":
            raise ValueError("split='train' needs photos=[uint8 arrays]; the package has none")
        photos = heldout_photos()
    if area is not None and not 0 < area <= MAX_AREA:
        raise ValueError(f"area is {area}; expected a share above 0 and at most {MAX_AREA}")
    size = (size, size) if isinstance(size, int) else size
    radius = None if area is None else math.sqrt(area / math.pi)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    random_kind = _choice(rng, KINDS)  # drawn in any case, so that `kind` does not change the rest
    kind = kind or random_kind
    background = photo_crop(rng, photos[int(rng.integers(len(photos)))], size)
    before, after, instruction = _edit(rng, kind, size, radius)
    source, target = background, background.copy()
    for picture, items in ((source, before), (target, after)):
        for item in items:
            draw(picture, item)
    source, target = (np.rint(p).astype(np.uint8) for p in (source, target))
    mask = (source != target).any(axis=-1)
    return Scene(source, target, instruction, mask, kind)
