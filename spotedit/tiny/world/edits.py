"""Make edits of the toy world: an instruction, and the worlds before and after it.

Each maker draws one edit at random, or returns None if it does not fit into the landscape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .fit import Open
from .landscape import Landscape
from .palette import COLOURS, NEAR_COLOURS
from .picture import World
from .things import KINDS, Thing, overlap
from .words import PLACES, names, say

CASES = ("near colour", "small", "thin", "shadow", "texture", "busy")
_THIN = ("lamp", "flag", "kite", "flower")
_CASTING = ("tree", "fir", "house", "boat", "boat", "person")
_COLUMNS = {"left": 0.2, "middle": 0.5, "right": 0.8}  # x of their centres
_COLUMN_HALF_WIDTH = 0.07
_MIN_FOOT_TO_SHORE = 0.1  # objects on the ground would look too large further back
_NEAREST_FOOT = 0.985
_ZOOM = 1.3
_NUM_TRIES = 80
_MIN_COLOUR_DISTANCE = 90.0  # between old and new colour, Euclidean in 8-bit RGB
_SMALL_HEIGHTS = (0.05, 0.09)  # heights of objects that cover about one token


@dataclass(frozen=True)
class Edit:
    """An instruction, the worlds before and after it, and the numbers that it leaves open."""

    before: World
    after: World
    instruction: str
    opens: tuple[Open, ...] = ()


Maker = Callable[[np.random.Generator, Landscape, str], Edit | None]


def choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Return one of the options at random."""
    return options[int(rng.integers(len(options)))]


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _is_clear(thing: Thing, others: Sequence[Thing]) -> bool:
    """Return whether the object hardly overlaps the others."""
    return all(overlap(thing, other) < 0.04 for other in others)


def _is_inside(thing: Thing) -> bool:
    """Return whether the object lies within the picture's left, right and top edges."""
    left, top, right, _ = thing.box
    return left > 0.01 and right < 0.99 and top > 0.01


def _foot_range(place: str, height: float, land: Landscape) -> tuple[float, float]:
    """Return the range of y for the foot of an object of this height."""
    if place == "sky":
        return height + 0.02, max(height + 0.05, land.horizon - 0.08)
    if place == "water":
        depth = land.shore - land.horizon
        return land.horizon + 0.4 * depth, land.horizon + 0.6 * depth
    return min(land.shore + _MIN_FOOT_TO_SHORE, 0.9), _NEAREST_FOOT


def _random_thing(
    rng: np.random.Generator, kind: str, land: Landscape, scale: float = 1.0
) -> Thing:
    """Return an object of this kind with random properties, at a random place where it belongs."""
    spec = KINDS[kind]
    height = scale * _between(rng, spec.heights)
    half = spec.half_width * height + 0.01
    light, warmth, form = rng.random(3).tolist()
    return Thing(
        kind, choice(rng, spec.usual), _between(rng, (half, 1 - half)),
        _between(rng, _foot_range(spec.place, height, land)), height, light, warmth, form,
        flip=1 if rng.random() < 0.5 else -1, striped=bool(rng.random() < 0.12),
    )  # fmt: skip


def _possible_kinds(land: Landscape) -> list[str]:
    """Return the kinds of objects that have a place in this landscape."""
    has_water = land.shore > land.horizon
    return [name for name, kind in KINDS.items() if has_water or kind.place != "water"]


def _with_others(
    rng: np.random.Generator, land: Landscape, first: Sequence[Thing], counts: tuple[int, int]
) -> tuple[Thing, ...]:
    """Return `first` and random further objects that hardly overlap.

    Their number is in the half-open range `counts`. One in four has the kind of the first object.
    """
    things = list(first)
    num_things = len(first) + int(rng.integers(*counts))
    for _ in range(_NUM_TRIES):
        if len(things) >= num_things:
            break
        is_twin = bool(things) and rng.random() < 0.25
        kind = things[0].kind if is_twin else choice(rng, _possible_kinds(land))
        thing = _random_thing(rng, kind, land)
        if _is_inside(thing) and _is_clear(thing, things):
            things.append(thing)
    return tuple(things)


def _kinds_of_case(land: Landscape, case: str) -> list[str]:
    """Return the kinds of objects that a hard case edits; without a case, all that fit."""
    possible = _possible_kinds(land)
    if case == "thin":
        return [kind for kind in possible if kind in _THIN]
    if case == "shadow":
        return [kind for kind in _CASTING if kind in possible]
    if case == "busy":
        return [kind for kind in possible if KINDS[kind].place == "ground"]
    if case == "texture":
        return [kind for kind in possible if kind not in ("bird", "lamp")]
    return possible


def _subject(rng: np.random.Generator, land: Landscape, case: str) -> Thing:
    """Return the object to edit, with the kind and size that the hard case asks for."""
    kind, scale = choice(rng, _kinds_of_case(land, case)), 1.0
    if case == "small":
        spec = KINDS[kind]
        width = max(1.0, spec.half_width) ** 0.5
        scale = _between(rng, _SMALL_HEIGHTS) / (0.5 * sum(spec.heights)) / width
    return _random_thing(rng, kind, land, scale)


def _world_and_name(
    rng: np.random.Generator, land: Landscape, subject: Thing, counts: tuple[int, int]
) -> tuple[World, str] | None:
    """Return a world in which object 0 is the subject, and a name that means it alone.

    `counts` is the half-open range for the number of other objects.
    """
    if not _is_inside(subject):
        return None
    world = World(land, _with_others(rng, land, [subject], counts))
    unique_names = names(world.things, 0)
    return (world, choice(rng, unique_names)) if unique_names else None


# The numbers that instructions leave open. The edited object is always object 0.
_OPEN_SHADE = Open(0, "light", 0.0, 1.0), Open(0, "warmth", 0.0, 1.0)
_OPEN_BUILD = *_OPEN_SHADE, Open(0, "form", 0.0, 1.0), Open(0, "flip", -1, 1)


def _recolour(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing = _subject(rng, land, case)
    if case == "near colour":
        pair = NEAR_COLOURS[int(rng.integers(len(NEAR_COLOURS)))]
        old, new = pair if rng.random() < 0.5 else pair[::-1]
        thing = replace(thing, colour=old)
    else:
        change = {word: np.subtract(COLOURS[word], COLOURS[thing.colour]) for word in COLOURS}
        new = choice(
            rng, [word for word in COLOURS if np.linalg.norm(change[word]) >= _MIN_COLOUR_DISTANCE]
        )
    named = _world_and_name(rng, land, thing, (1, 4))
    if named is None:
        return None
    before, name = named
    light, warmth = rng.random(2).tolist()
    after = before.having(0, replace(thing, colour=new, light=light, warmth=warmth))
    return Edit(before, after, say(rng, "recolour", name=name, colour=new), _OPEN_SHADE)


def _texture(rng: np.random.Generator, land: Landscape, _: str) -> Edit | None:
    thing = replace(_subject(rng, land, "texture"), striped=False)
    named = _world_and_name(rng, land, thing, (1, 4))
    if named is None:
        return None
    before, name = named
    after = before.having(0, replace(thing, striped=True))
    return Edit(before, after, say(rng, "texture", name=name))


def _remove(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    named = _world_and_name(rng, land, _subject(rng, land, case), (0, 4))
    if named is None:
        return None
    before, name = named
    return Edit(before, before.without(0), say(rng, "remove", name=name))


def _replace(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    """Replace an object by one of another kind, with about the same area and the same foot."""
    thing = _subject(rng, land, case)
    named = _world_and_name(rng, land, thing, (0, 3))
    if named is None:
        return None
    before, name = named
    place = KINDS[thing.kind].place
    others = [kind for kind, spec in KINDS.items() if spec.place == place and kind != thing.kind]
    kind = choice(rng, others)
    spec = KINDS[kind]
    height = thing.height * (KINDS[thing.kind].half_width / spec.half_width) ** 0.5
    if case != "small":
        height = float(np.clip(height, *spec.heights))
    heights = 0.9 * height, 1.1 * height
    light, warmth, form = rng.random(3).tolist()
    new = Thing(
        kind, choice(rng, tuple(COLOURS)), thing.x, thing.y, _between(rng, heights),
        light, warmth, form, flip=1 if rng.random() < 0.5 else -1,
    )  # fmt: skip
    largest = replace(new, height=heights[1])
    if not _is_inside(largest) or not _is_clear(largest, before.things[1:]):
        return None
    instruction = say(rng, "replace", name=name, new=f"{new.colour} {kind}")
    opens = (Open(0, "height", *heights), *_OPEN_BUILD)
    return Edit(before, before.having(0, new), instruction, opens)


def _column(side: str, half_width: float) -> tuple[float, float]:
    """Return the range of x in this third of the picture for an object of this half width."""
    middle = _COLUMNS[side]
    low = max(middle - _COLUMN_HALF_WIDTH, half_width)
    high = min(middle + _COLUMN_HALF_WIDTH, 1 - half_width)
    return (low, high) if low < high else (middle - 0.005, middle + 0.005)


def _add(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing, side = _subject(rng, land, case), choice(rng, tuple(_COLUMNS))
    spec = KINDS[thing.kind]
    middle = thing.height if case == "small" else 0.5 * sum(spec.heights)
    heights = 0.85 * middle, 1.15 * middle
    x_range = _column(side, spec.half_width * heights[1] + 0.015)
    y_range = _foot_range(spec.place, heights[1], land)
    new = replace(
        thing, colour=choice(rng, tuple(COLOURS)), striped=False, x=_between(rng, x_range),
        y=_between(rng, y_range), height=_between(rng, heights),
    )  # fmt: skip
    if not _is_inside(new):
        return None
    after = World(land, _with_others(rng, land, [new], (1, 4)))
    instruction = say(rng, "add", new=f"{new.colour} {new.kind}", place=PLACES[side])
    opens = (
        Open(0, "x", *x_range), Open(0, "y", *y_range), Open(0, "height", *heights), *_OPEN_BUILD,
    )  # fmt: skip
    return Edit(after.without(0), after, instruction, opens)


def _move(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing, side = _subject(rng, land, case), choice(rng, tuple(_COLUMNS))
    x_range = _column(side, KINDS[thing.kind].half_width * thing.height + 0.015)
    moved = replace(thing, x=_between(rng, x_range))
    if abs(moved.x - thing.x) < 0.25 or not _is_inside(moved) or not _is_inside(thing):
        return None
    _, _, *others = _with_others(rng, land, [thing, moved], (0, 3))  # away from both places
    before = World(land, (thing, *others))
    unique_names = names(before.things, 0)
    if not unique_names:
        return None
    instruction = say(rng, "move", name=choice(rng, unique_names), side=side)
    return Edit(before, before.having(0, moved), instruction, (Open(0, "x", *x_range),))


def _whole(kind: str, change: Callable[[World], World]) -> Maker:
    """Return the maker of an edit that changes the whole frame."""

    def make(rng: np.random.Generator, land: Landscape, _: str) -> Edit:
        before = World(land, _with_others(rng, land, [], (2, 5)))
        return Edit(before, change(before), say(rng, kind))

    return make


def _landscape(**changes: Any) -> Callable[[World], World]:
    """Return a function that changes fields of a world's landscape."""
    return lambda world: replace(world, landscape=replace(world.landscape, **changes))


LOCAL_KINDS: dict[str, Maker] = {
    "recolour": _recolour, "texture": _texture, "remove": _remove, "replace": _replace,
    "add": _add, "move": _move,
}  # fmt: skip
WHOLE_KINDS: dict[str, Maker] = {
    "night": _whole("night", _landscape(hour="night")),
    "winter": _whole("winter", _landscape(season="winter")),
    "autumn": _whole("autumn", _landscape(season="autumn")),
    "sepia": _whole("sepia", lambda world: replace(world, toned=True)),
    "zoom": _whole("zoom", lambda world: replace(world, zoom=_ZOOM)),
}
