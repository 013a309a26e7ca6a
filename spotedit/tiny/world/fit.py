"""Find the valid picture that is nearest to an edited one, by rendering and comparing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from .picture import World, render
from .things import overlap

# Differences and distances are in 1/255.
_MAX_OVERLAP = 0.3  # share of the smaller box; with more, the answer is not valid
_NUM_STARTS = 5  # starting values for each open number
_NUM_DESCENTS = 2  # searches from the best starting points, and as many from their mirror images
_BLOCK = 4  # side in pixels of the blocks in which an object is searched for
_OBJECT_DIFFERENCE = 12.0  # a block that differs by more from the source shows the object
_CHANGED = 4  # a pixel that differs by more from the source belongs to the edit
_STEPS = (0.25, 0.12, 0.06, 0.03, 0.015, 0.007)  # shares of an open number's range
_RIGHT_SHARE = 0.4  # a right edit's distance as a share of the source's
_RIGHT_DISTANCE = 12.0  # an edit this close is right, however close the source is
_NUM_TOKENS = 16  # blocks along a side in which the surroundings of the edit are judged
_MAX_ELSEWHERE = 40.0  # a block with a larger distance counts as changed by mistake


@dataclass(frozen=True)
class Open:
    """A number that an instruction leaves open: a field of an object, with its valid range.

    Attributes:
        index: index of the object in the world.
        field: name of the object's field.
        low, high: the ends of the range.
    """

    index: int
    field: str
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """The nearest valid picture, and the distance of the edited picture to it.

    A distance is the root of the mean squared difference, in 1/255.

    Attributes:
        picture: the nearest valid picture, uint8 [H, W, 3].
        world: the world that it shows.
        region: bool [H, W], True where it differs from the source.
        distance: distance of the edited picture in the region.
        source_distance: distance of the source in the region.
        elsewhere: the largest distance among the blocks of pixels wholly outside the region.
    """

    picture: np.ndarray
    world: World
    region: np.ndarray
    distance: float
    source_distance: float
    elsewhere: float

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio in the region, in dB."""
        return float(20 * np.log10(255 / max(self.distance, 1e-3)))

    @property
    def right(self) -> bool:
        """True if the edit was made and nothing else was changed.

        In the region, the edit must be at least 8 dB closer to the valid picture than the source,
        or within 12/255 of it. No block elsewhere may have a distance above 40/255.
        """
        is_made = self.distance <= max(_RIGHT_SHARE * self.source_distance, _RIGHT_DISTANCE)
        return is_made and self.elsewhere <= _MAX_ELSEWHERE


def nearest_valid(
    picture: np.ndarray, source: np.ndarray, world: World, opens: Sequence[Open]
) -> Fit:
    """Search the valid worlds for the one whose picture is nearest to `picture`.

    The search changes one open number at a time, in shrinking steps, from the most promising of
    several starting points.

    Args:
        picture, source: the edited picture and its source, uint8 [H, W, 3].
        world: one valid world.
        opens: the numbers in which other valid worlds may differ from it.
    """
    wanted = picture.astype(np.float32)
    size = picture.shape[0]

    @cache
    def error(candidate: World) -> float:
        if _is_hidden(candidate, opens):
            return math.inf
        return float(np.square(render(candidate, size) - wanted).mean())

    starts = _starts(picture, source, world, opens)
    groups = [starts]
    for open_number in opens:
        if open_number.field == "flip":
            groups.append([_with(s, open_number, -_value(s, open_number)) for s in starts])
    chosen = [start for group in groups for start in sorted(group, key=error)[:_NUM_DESCENTS]]
    best = min((_descend(start, error, opens) for start in chosen), key=error)
    valid = render(best, size)
    region = np.abs(valid.astype(np.int16) - source).max(axis=-1) > _CHANGED
    return Fit(
        valid, best, region,
        distance=_distance(picture, valid, region),
        source_distance=_distance(source, valid, region),
        elsewhere=_elsewhere(picture, valid, region),
    )  # fmt: skip


def _elsewhere(picture: np.ndarray, valid: np.ndarray, region: np.ndarray) -> float:
    """Return the largest distance of a block outside the region; 0 if there is no such block."""
    side = len(picture) // _NUM_TOKENS
    squares = np.square(picture.astype(np.float64) - valid).mean(axis=-1)
    means = squares.reshape(_NUM_TOKENS, side, _NUM_TOKENS, side).mean(axis=(1, 3))
    is_outside = ~region.reshape(_NUM_TOKENS, side, _NUM_TOKENS, side).any(axis=(1, 3))
    return float(np.sqrt(means[is_outside].max(initial=0.0)))


def _distance(first: np.ndarray, second: np.ndarray, region: np.ndarray) -> float:
    if not region.any():
        return 0.0
    difference = first[region].astype(np.float64) - second[region]
    return float(np.sqrt(np.square(difference).mean()))


def _value(world: World, open_number: Open) -> float:
    return float(getattr(world.things[open_number.index], open_number.field))


def _with(world: World, open_number: Open, value: float) -> World:
    """Return the world with another value of one open number, limited to its range."""
    value = float(np.clip(value, open_number.low, open_number.high))
    change: dict[str, Any] = {open_number.field: value}
    if open_number.field == "flip":
        change = {"flip": 1 if value > 0 else -1}
    thing = replace(world.things[open_number.index], **change)
    return world.having(open_number.index, thing)


def _starts(
    picture: np.ndarray, source: np.ndarray, world: World, opens: Sequence[Open]
) -> list[World]:
    """Return starting points for the search.

    These are `world` itself, worlds with the object at several places or in several sizes of its
    range, and one with the object where the picture differs from the source.
    """
    by_field = {open_number.field: open_number for open_number in opens}
    varied_fields = ("x", "y") if "x" in by_field else ("height",)
    starts = [world]
    for field in varied_fields:
        if field in by_field:
            open_number = by_field[field]
            values = np.linspace(open_number.low, open_number.high, _NUM_STARTS)
            starts += [_with(start, open_number, value) for start in starts for value in values]
    if "y" in by_field:
        y, x = np.nonzero(_block_differences(picture, source) > _OBJECT_DIFFERENCE)
        if len(y):
            box = {"x": (x.min() + x.max() + 1) / 2, "y": y.max() + 1, "height": np.ptp(y) + 1}
            moved = world
            for field, value in box.items():
                moved = _with(moved, by_field[field], value * _BLOCK / len(picture))
            starts.append(moved)
    return starts


def _block_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return each block's mean absolute difference, in the channel where that is largest."""
    side = len(first) // _BLOCK
    difference = np.abs(first.astype(np.int16) - second)
    tiled = difference.reshape(side, _BLOCK, side, _BLOCK, 3)
    return tiled.mean(axis=(1, 3)).max(axis=-1)


def _is_hidden(world: World, opens: Sequence[Open]) -> bool:
    """Return whether an added or moved object overlaps another one too much."""
    moved = {open_number.index for open_number in opens if open_number.field in ("x", "y")}
    return any(
        overlap(world.things[index], other) > _MAX_OVERLAP
        for index in moved
        for i, other in enumerate(world.things)
        if i != index
    )


def _descend(world: World, error: Callable[[World], float], opens: Sequence[Open]) -> World:
    """Improve one open number after the other, in shrinking steps.

    If both foot and height are open, they are also changed together, so that the top or the centre
    of the object stays in place.
    """
    numbers = {number.field: number for number in opens if number.field != "flip"}
    moves = [{field: number.high - number.low} for field, number in numbers.items()]
    if {"y", "height"} <= numbers.keys():
        reach = numbers["y"].high - numbers["y"].low
        moves += [{"y": reach, "height": reach}, {"y": reach / 2, "height": reach}]
    least_error = error(world)
    for step, move, direction in product(_STEPS, moves, (1, -1)):
        while True:
            candidate = world
            for field, reach in move.items():
                value = _value(world, numbers[field]) + direction * step * reach
                candidate = _with(candidate, numbers[field], value)
            candidate_error = error(candidate)
            if candidate_error >= least_error:
                break
            world, least_error = candidate, candidate_error
    return world
