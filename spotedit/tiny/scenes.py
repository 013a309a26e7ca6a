"""Synthetic edits with a known truth: objects composited on photographs, and one instruction.

`make_scene(seed)` is deterministic. Held-out scenes stand on the six photographs that ship with
the package, which the tiny editor was never trained on.
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
MAX_AREA = 0.6  # the object still lies in the picture
_CLEAR_COLOUR_STEP = 150.0  # Euclidean distance in 8-bit RGB between old and new colour
_TRIES = 60


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
    """The packaged photographs as uint8 [H, W, 3], in the order of their names."""
    folder = files(__package__) / "photos"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".jpg"))
    pictures = []
    for name in names:
        with (folder / name).open("rb") as file:
            pictures.append(np.asarray(Image.open(file).convert("RGB")))
    return tuple(pictures)


def photo_crop(rng: np.random.Generator, photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A random crop of uint8 `photo`, mirrored half the time, as float [H, W, 3] of `size`."""
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


def _free(item: Item, others: Sequence[Item]) -> bool:
    return all(
        np.hypot(item.centre[0] - o.centre[0], item.centre[1] - o.centre[1])
        > 1.12 * (item.radius + o.radius)
        for o in others
    )


def _scatter(
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    taken: Sequence[Item] = (),
    first: float | None = None,
) -> list[Item]:
    """Up to `count` objects with distinct names that overlap neither each other nor `taken`.

    `first` is the radius of the first one, / shorter side; those of the others are drawn.
    """
    items: list[Item] = []
    for _ in range(_TRIES):
        if len(items) == count:
            break
        radius = min(size) * rng.uniform(min(SIZES.values()), max(SIZES.values()))
        if first is not None and not items:
            radius = min(size) * first
        y, x = (float(rng.uniform(1.1 * radius, side - 1.1 * radius)) for side in size)
        item = Item(
            _choice(rng, SHAPES), _choice(rng, tuple(COLOURS)), _texture(rng), (y, x), radius
        )
        others = [*taken, *items]
        if _free(item, others) and item.name not in {o.name for o in others}:
            items.append(item)
    return items


def _far_colour(rng: np.random.Generator, old: str) -> str:
    distance = {c: np.linalg.norm(np.subtract(COLOURS[c], COLOURS[old])) for c in COLOURS}
    return _choice(rng, [c for c in COLOURS if distance[c] >= _CLEAR_COLOUR_STEP])


def _edit(
    rng: np.random.Generator, kind: str, size: tuple[int, int], radius: float | None
) -> tuple[list[Item], list[Item], str]:
    """Objects before, objects after, instruction. `radius`: of what is edited / shorter side."""
    if kind == "add":
        place, scale = _choice(rng, tuple(PLACES)), _choice(rng, tuple(SIZES))
        centre = PLACES[place][0] * size[0], PLACES[place][1] * size[1]
        new = Item(
            _choice(rng, SHAPES), _choice(rng, tuple(COLOURS)), _texture(rng),
            centre, SIZES[scale] * min(size),
        )  # fmt: skip
        before = _scatter(rng, int(rng.integers(0, 3)), size, [new])
        return before, [*before, new], f"add a {scale} {new.full_name} at the {place}"
    before = _scatter(rng, int(rng.integers(1, 4)), size, first=radius)
    old, rest = before[0], before[1:]
    if kind == "remove":
        return before, rest, f"remove the {old.name}"
    colour = _far_colour(rng, old.colour)
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
        kind: one of `KINDS`; drawn from the seed where None.
        size: side, or (height, width), in pixels.
        split: "heldout", or "train" (which needs `photos`).
        photos: uint8 [H, W, 3] backgrounds; the packaged held-out ones where None.
        area: of a disc of the edited object's radius, as a share of a square of the picture's
            shorter side: above 0 and at most `MAX_AREA`; drawn, 0.05 to 0.15, where None. What
            "add" adds has the size that the instruction names.

    Raises:
        ValueError: unknown kind or split, no photographs for the training split, or an area out of
            range.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {KINDS}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {SPLITS}")
    if photos is None:
        if split == "train":
            raise ValueError("the training split needs photos=[uint8 arrays]; none ship with it")
        photos = heldout_photos()
    if area is not None and not 0 < area <= MAX_AREA:
        raise ValueError(f"area is {area}; expected a share above 0 and at most {MAX_AREA}")
    size = (size, size) if isinstance(size, int) else size
    radius = None if area is None else math.sqrt(area / math.pi)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    drawn = _choice(rng, KINDS)
    background = photo_crop(rng, photos[int(rng.integers(len(photos)))], size)
    before, after, instruction = _edit(rng, kind or drawn, size, radius)
    source, target = background, background.copy()
    for picture, items in ((source, before), (target, after)):
        for item in items:
            draw(picture, item)
    source, target = (np.rint(p).astype(np.uint8) for p in (source, target))
    mask = (source != target).any(axis=-1)
    return Scene(source, target, instruction, mask, kind or drawn)
