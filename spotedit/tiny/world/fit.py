"""The valid picture that is nearest to an edited one: render and compare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from .picture import World, render
from .things import overlap

_COVERED = 0.3  # of the smaller box: an object that is hidden more is no valid answer
_GRID = 5  # places to begin from, in each direction
_DESCENTS = 2  # from the best of them, and as many from their mirror images
_BLOCK, _SEEN = 4, 12.0  # pixels; of 255: the mean difference of a block that an object covers
_CHANGED = 4  # of 255: pixels that differ by more from the source belong to the edit
_STEPS = (0.25, 0.12, 0.06, 0.03, 0.015, 0.007)  # of each open range
_RIGHT_SHARE = 0.4  # of the source's own distance to the valid picture
_RIGHT_DISTANCE = 12.0  # of 255: near enough whatever the source's distance is
_TOKENS = 16  # blocks along a side in which what lies outside the edit is judged
_SPOILT = 40.0  # of 255: a block that was changed though nobody asked for it


@dataclass(frozen=True)
class Open:
    """A number that an instruction leaves open: a field of object `index`, within a range."""

    index: int
    field: str
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """The nearest valid picture and how far the edited one is from it.

    Attributes:
        picture: uint8 [H, W, 3].
        world: what it shows.
        region: bool [H, W], where it differs from the source.
        distance: root of the mean squared difference in the region, in 1/255.
        source_distance: the same of the source.
        elsewhere: the largest distance of a block of pixels wholly outside the region.
    """

    picture: np.ndarray
    world: World
    region: np.ndarray
    distance: float
    source_distance: float
    elsewhere: float

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in the region, in dB."""
        return float(20 * np.log10(255 / max(self.distance, 1e-3)))

    @property
    def right(self) -> bool:
        """Tell whether the edit was made and nothing else was changed.

        The region must be at least 8 dB nearer to the valid picture than the source is, or within
        12/255 of it, and no other block may be off by more than 40/255.
        """
        made = self.distance <= max(_RIGHT_SHARE * self.source_distance, _RIGHT_DISTANCE)
        return made and self.elsewhere <= _SPOILT


def nearest_valid(
    picture: np.ndarray, source: np.ndarray, world: World, opens: Sequence[Open]
) -> Fit:
    """Search the open numbers of `world` for the picture nearest to `picture`.

    A search by coordinates with shrinking steps, from the most promising of several beginnings.
    """
    wanted = picture.astype(np.float32)
    size = picture.shape[0]

    @cache
    def error(candidate: World) -> float:
        if _hidden(candidate, opens):
            return math.inf
        return float(np.square(render(candidate, size) - wanted).mean())

    groups = [_starts(picture, source, world, opens)]
    groups += [
        [_with(start, f, -_value(start, f)) for start in groups[0]]
        for f in opens
        if f.field == "flip"
    ]
    chosen = [start for starts in groups for start in sorted(starts, key=error)[:_DESCENTS]]
    best = min((_descend(start, error, opens) for start in chosen), key=error)
    valid = render(best, size)
    region = np.abs(valid.astype(np.int16) - source).max(axis=-1) > _CHANGED
    distances = _rms(picture, valid, region), _rms(source, valid, region)
    return Fit(valid, best, region, *distances, _elsewhere(picture, valid, region))


def _elsewhere(picture: np.ndarray, valid: np.ndarray, region: np.ndarray) -> float:
    """Return the largest distance of a block without a pixel of the region; 0 without one."""
    side = len(picture) // _TOKENS
    squares = np.square(picture.astype(np.float64) - valid).mean(axis=-1)
    means = squares.reshape(_TOKENS, side, _TOKENS, side).mean(axis=(1, 3))
    outside = ~region.reshape(_TOKENS, side, _TOKENS, side).any(axis=(1, 3))
    return float(np.sqrt(means[outside].max(initial=0.0)))


def _rms(first: np.ndarray, second: np.ndarray, region: np.ndarray) -> float:
    if not region.any():
        return 0.0
    difference = first[region].astype(np.float64) - second[region]
    return float(np.sqrt(np.square(difference).mean()))


def _value(world: World, field: Open) -> float:
    """Return one open number's value."""
    return float(getattr(world.things[field.index], field.field))


def _with(world: World, field: Open, value: float) -> World:
    """Return the world with one open number set, within its range."""
    value = float(np.clip(value, field.low, field.high))
    changed: dict[str, Any] = {field.field: value}
    if field.field == "flip":
        changed = {"flip": 1 if value > 0 else -1}
    thing = replace(world.things[field.index], **changed)
    return world.having(field.index, thing)


def _starts(
    picture: np.ndarray, source: np.ndarray, world: World, opens: Sequence[Open]
) -> list[World]:
    """Return where to begin: the shown target, the object at several places or sizes of its
    range, and where the picture differs from the source."""
    fields = {field.field: field for field in opens}
    gridded = ("x", "y") if "x" in fields else ("height",)
    starts = [world]
    for field in (fields[name] for name in gridded if name in fields):
        values = np.linspace(field.low, field.high, _GRID)
        starts += [_with(start, field, value) for start in starts for value in values]
    if "y" in fields:
        y, x = np.nonzero(_blocks(picture, source) > _SEEN)
        if len(y):
            found = {"x": (x.min() + x.max() + 1) / 2, "y": y.max() + 1, "height": np.ptp(y) + 1}
            moved = world
            for name, value in found.items():
                moved = _with(moved, fields[name], value * _BLOCK / len(picture))
            starts.append(moved)
    return starts


def _blocks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the largest channel's mean absolute difference by blocks of pixels."""
    side = len(first) // _BLOCK
    difference = np.abs(first.astype(np.int16) - second)
    tiled = difference.reshape(side, _BLOCK, side, _BLOCK, 3)
    return tiled.mean(axis=(1, 3)).max(axis=-1)


def _hidden(world: World, opens: Sequence[Open]) -> bool:
    """Tell whether an object that was added or moved and another one hide each other."""
    edited = {field.index for field in opens if field.field in ("x", "y")}
    return any(
        overlap(world.things[index], other) > _COVERED
        for index in edited
        for i, other in enumerate(world.things)
        if i != index
    )


def _descend(world: World, error: Callable[[World], float], opens: Sequence[Open]) -> World:
    """Improve the open numbers one after the other, in steps that shrink.

    Where foot and height are open, also both at once, so that the top or the centre stays.
    """
    numbers = {field.field: field for field in opens if field.field != "flip"}
    moves = [{name: field.high - field.low} for name, field in numbers.items()]
    if {"y", "height"} <= numbers.keys():
        reach = numbers["y"].high - numbers["y"].low
        moves += [{"y": reach, "height": reach}, {"y": reach / 2, "height": reach}]
    least = error(world)
    for step, move, direction in product(_STEPS, moves, (1, -1)):
        while True:
            tried = world
            for name, reach in move.items():
                value = _value(world, numbers[name]) + direction * step * reach
                tried = _with(tried, numbers[name], value)
            left = error(tried)
            if left >= least:
                break
            world, least = tried, left
    return world
