"""Edits of the toy world: what a picture shows before and after an instruction.

Every maker draws one edit at random, or returns None where the landscape has no place for it.
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
_COLUMNS = {"left": 0.2, "middle": 0.5, "right": 0.8}
_COLUMN_HALF = 0.07
_FARTHEST_FOOT = 0.1  # from the shore; objects at the horizon look too large
_NEAREST_FOOT = 0.985
_ZOOM = 1.3
_TRIES = 80
_CLEAR_COLOUR_STEP = 90.0  # Euclidean distance in 8-bit RGB between old and new colour
_FEW_TOKENS = (0.05, 0.09)  # height of small objects


@dataclass(frozen=True)
class Edit:
    """Holds what is shown before and after, the instruction, and what that leaves open."""

    before: World
    after: World
    instruction: str
    opens: tuple[Open, ...] = ()


Maker = Callable[[np.random.Generator, Landscape, str], Edit | None]


def choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    """Return one of the options."""
    return options[int(rng.integers(len(options)))]


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _clear(thing: Thing, others: Sequence[Thing]) -> bool:
    return all(overlap(thing, other) < 0.04 for other in others)


def _inside(thing: Thing) -> bool:
    left, top, right, _ = thing.box
    return left > 0.01 and right < 0.99 and top > 0.01


def _feet(place: str, height: float, land: Landscape) -> tuple[float, float]:
    """Return the range in which the foot of an object of this height may lie."""
    if place == "sky":
        return height + 0.02, max(height + 0.05, land.horizon - 0.08)
    if place == "water":
        depth = land.shore - land.horizon
        return land.horizon + 0.4 * depth, land.horizon + 0.6 * depth
    return min(land.shore + _FARTHEST_FOOT, 0.9), _NEAREST_FOOT


def _thing(rng: np.random.Generator, kind: str, land: Landscape, scale: float = 1.0) -> Thing:
    """Return an object of this kind somewhere in the landscape."""
    spec = KINDS[kind]
    height = scale * _between(rng, spec.heights)
    half = spec.half_width * height + 0.01
    light, warmth, form = rng.random(3).tolist()
    return Thing(
        kind, choice(rng, spec.usual), _between(rng, (half, 1 - half)),
        _between(rng, _feet(spec.place, height, land)), height, light, warmth, form,
        flip=1 if rng.random() < 0.5 else -1, striped=bool(rng.random() < 0.12),
    )  # fmt: skip


def _fitting(land: Landscape) -> list[str]:
    """Return the kinds of objects that this landscape has a place for."""
    wet = land.shore > land.horizon
    return [name for name, kind in KINDS.items() if wet or kind.place != "water"]


def _fill(
    rng: np.random.Generator, land: Landscape, first: Sequence[Thing], counts: tuple[int, int]
) -> tuple[Thing, ...]:
    """Return `first` and a few further objects that hardly hide each other, often of one kind."""
    things, wanted = list(first), len(first) + int(rng.integers(*counts))
    for _ in range(_TRIES):
        if len(things) >= wanted:
            break
        twin = bool(things) and rng.random() < 0.25
        kind = things[0].kind if twin else choice(rng, _fitting(land))
        thing = _thing(rng, kind, land)
        if _inside(thing) and _clear(thing, things):
            things.append(thing)
    return tuple(things)


def _kinds(land: Landscape, case: str) -> list[str]:
    """Return the kinds of objects that an edit of this hard case is about."""
    fitting = _fitting(land)
    if case == "thin":
        return [kind for kind in fitting if kind in _THIN]
    if case == "shadow":
        return [kind for kind in _CASTING if kind in fitting]
    if case == "busy":
        return [kind for kind in fitting if KINDS[kind].place == "ground"]
    if case == "texture":
        return [kind for kind in fitting if kind not in ("bird", "lamp")]
    return fitting


def _subject(rng: np.random.Generator, land: Landscape, case: str) -> Thing:
    """Return the object that the edit is about, of the kind and size of the hard case."""
    kind, scale = choice(rng, _kinds(land, case)), 1.0
    if case == "small":
        spec = KINDS[kind]
        wide = max(1.0, spec.half_width) ** 0.5
        scale = _between(rng, _FEW_TOKENS) / (0.5 * sum(spec.heights)) / wide
    return _thing(rng, kind, land, scale)


def _named(
    rng: np.random.Generator, land: Landscape, subject: Thing, counts: tuple[int, int]
) -> tuple[World, str] | None:
    """Return a world whose object 0 is `subject`, and words that mean it alone."""
    if not _inside(subject):
        return None
    world = World(land, _fill(rng, land, [subject], counts))
    known = names(world.things, 0)
    return (world, choice(rng, known)) if known else None


def _shade_of(index: int) -> tuple[Open, ...]:
    return Open(index, "light", 0.0, 1.0), Open(index, "warmth", 0.0, 1.0)


def _build_of(index: int) -> tuple[Open, ...]:
    return *_shade_of(index), Open(index, "form", 0.0, 1.0), Open(index, "flip", -1, 1)


def _recolour(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing = _subject(rng, land, case)
    if case == "near colour":
        pair = NEAR_COLOURS[int(rng.integers(len(NEAR_COLOURS)))]
        old, new = pair if rng.random() < 0.5 else pair[::-1]
        thing = replace(thing, colour=old)
    else:
        step = {word: np.subtract(COLOURS[word], COLOURS[thing.colour]) for word in COLOURS}
        far = [word for word in COLOURS if np.linalg.norm(step[word]) >= _CLEAR_COLOUR_STEP]
        new = choice(rng, far)
    if (found := _named(rng, land, thing, (1, 4))) is None:
        return None
    before, name = found
    light, warmth = rng.random(2).tolist()
    after = before.having(0, replace(thing, colour=new, light=light, warmth=warmth))
    return Edit(before, after, say(rng, "recolour", name=name, colour=new), _shade_of(0))


def _texture(rng: np.random.Generator, land: Landscape, _: str) -> Edit | None:
    thing = replace(_subject(rng, land, "texture"), striped=False)
    if (found := _named(rng, land, thing, (1, 4))) is None:
        return None
    before, name = found
    striped = before.having(0, replace(thing, striped=True))
    return Edit(before, striped, say(rng, "texture", name=name))


def _remove(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    if (found := _named(rng, land, _subject(rng, land, case), (0, 4))) is None:
        return None
    before, name = found
    return Edit(before, before.without(0), say(rng, "remove", name=name))


def _replace(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    """Another object of about the same area, on the same foot."""
    thing = _subject(rng, land, case)
    if (found := _named(rng, land, thing, (0, 3))) is None:
        return None
    before, name = found
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
    if not _inside(largest) or not _clear(largest, before.things[1:]):
        return None
    words = say(rng, "replace", name=name, new=f"{new.colour} {kind}")
    opens = (Open(0, "height", *heights), *_build_of(0))
    return Edit(before, before.having(0, new), words, opens)


def _column(side: str, half: float) -> tuple[float, float]:
    """Return the range of x in this third of the picture for an object of this half width."""
    middle = _COLUMNS[side]
    low, high = max(middle - _COLUMN_HALF, half), min(middle + _COLUMN_HALF, 1 - half)
    return (low, high) if low < high else (middle - 0.005, middle + 0.005)


def _add(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing, side = _subject(rng, land, case), choice(rng, tuple(_COLUMNS))
    spec = KINDS[thing.kind]
    middle = thing.height if case == "small" else 0.5 * sum(spec.heights)
    heights = 0.85 * middle, 1.15 * middle
    columns = _column(side, spec.half_width * heights[1] + 0.015)
    rows = _feet(spec.place, heights[1], land)
    new = replace(
        thing, colour=choice(rng, tuple(COLOURS)), striped=False, x=_between(rng, columns),
        y=_between(rng, rows), height=_between(rng, heights),
    )  # fmt: skip
    if not _inside(new):
        return None
    after = World(land, _fill(rng, land, [new], (1, 4)))
    words = say(rng, "add", new=f"{new.colour} {new.kind}", place=PLACES[side])
    opens = (
        Open(0, "x", *columns), Open(0, "y", *rows), Open(0, "height", *heights), *_build_of(0),
    )  # fmt: skip
    return Edit(after.without(0), after, words, opens)


def _move(rng: np.random.Generator, land: Landscape, case: str) -> Edit | None:
    thing, side = _subject(rng, land, case), choice(rng, tuple(_COLUMNS))
    columns = _column(side, KINDS[thing.kind].half_width * thing.height + 0.015)
    moved = replace(thing, x=_between(rng, columns))
    if abs(moved.x - thing.x) < 0.25 or not _inside(moved) or not _inside(thing):
        return None
    _, _, *others = _fill(rng, land, [thing, moved], (0, 3))
    before = World(land, (thing, *others))
    known = names(before.things, 0)
    if not known:
        return None
    words = say(rng, "move", name=choice(rng, known), side=side)
    return Edit(before, before.having(0, moved), words, (Open(0, "x", *columns),))


def _whole(kind: str, change: Callable[[World], World]) -> Maker:
    """Return the maker of an edit of the whole frame."""

    def make(rng: np.random.Generator, land: Landscape, _: str) -> Edit:
        before = World(land, _fill(rng, land, [], (2, 5)))
        return Edit(before, change(before), say(rng, kind))

    return make


def _landscape(**changes: Any) -> Callable[[World], World]:
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
