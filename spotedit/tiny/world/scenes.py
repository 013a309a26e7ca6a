"""Edits of the toy world with a known truth: a picture, an instruction, and what obeys it.

What an instruction leaves open (a shade, a build, the exact place) is drawn at random, so one
target of many valid ones is shown; `Scene.fit` finds the valid picture that is nearest to an
edited one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .fit import Fit, Open, nearest_valid
from .landscape import Landscape, draw_landscape
from .palette import COLOURS, NEAR_COLOURS
from .picture import World, render
from .things import KINDS as THINGS
from .things import Thing, overlap
from .words import PLACES, names, say

LOCAL_KINDS = ("recolour", "texture", "remove", "replace", "add", "move")
WHOLE_KINDS = ("night", "winter", "autumn", "sepia", "zoom")
KINDS = (*LOCAL_KINDS, *WHOLE_KINDS)
SPLITS = ("train", "easy", "hard")
CASES = ("near colour", "small", "thin", "shadow", "texture", "busy")
_SHARES = (0.14, 0.06, 0.18, 0.18, 0.19, 0.11, 0.03, 0.03, 0.03, 0.025, 0.025)
_KINDS_OF_CASE = {
    "near colour": ("recolour",),
    "small": ("recolour", "remove", "add", "replace", "move"),
    "thin": ("recolour", "remove", "add", "move"),
    "shadow": ("remove", "move"),
    "texture": ("texture",),
    "busy": ("remove", "move", "replace"),
}
_THIN = ("lamp", "flag", "kite", "flower")
_CASTING = ("tree", "fir", "house", "boat", "boat", "person")
_BUSY = ("field", "paving", "flowers")
_HARD_IN_TRAINING = 0.35
_COLUMNS = {"left": 0.2, "middle": 0.5, "right": 0.8}
_COLUMN_HALF = 0.07
_ZOOM = 1.3
_TRIES = 80
_CLEAR_COLOUR_STEP = 90.0  # Euclidean distance in 8-bit RGB between old and new colour


@dataclass(frozen=True)
class Scene:
    """A source picture, an instruction, and a picture that obeys it.

    Attributes:
        source, target: uint8 [H, W, 3].
        instruction: the prompt.
        mask: bool [H, W], True where the two differ.
        kind: one of `KINDS`.
        case: one of `CASES` in the hard split, else "".
        before, after: what the two pictures show.
        opens: what the instruction leaves open in `after`.
    """

    source: np.ndarray
    target: np.ndarray
    instruction: str
    mask: np.ndarray
    kind: str
    case: str
    before: World
    after: World
    opens: tuple[Open, ...]

    @property
    def source_image(self) -> Image.Image:
        return Image.fromarray(self.source)

    @property
    def target_image(self) -> Image.Image:
        return Image.fromarray(self.target)

    def fit(self, picture: np.ndarray) -> Fit:
        """Find the valid picture nearest to `picture`, uint8 [H, W, 3] of the scene's size."""
        return nearest_valid(picture, self.source, self.after, self.opens)


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _clear(thing: Thing, others: Sequence[Thing]) -> bool:
    return all(overlap(thing, other) < 0.04 for other in others)


def _inside(thing: Thing) -> bool:
    left, top, right, _ = thing.box
    return left > 0.01 and right < 0.99 and top > 0.01


def _foot(rng: np.random.Generator, kind: str, height: float, land: Landscape) -> float:
    """Return y of a new object's foot."""
    place = THINGS[kind].place
    if place == "sky":
        return float(rng.uniform(height + 0.02, max(height + 0.05, land.horizon - 0.08)))
    if place == "water":
        return land.horizon + float(rng.uniform(0.4, 0.6)) * (land.shore - land.horizon)
    return float(rng.uniform(min(land.shore + 0.1, 0.9), 0.97))


def _thing(
    rng: np.random.Generator, kind: str, land: Landscape, scale: float = 1.0, x: float | None = None
) -> Thing:
    """Return an object of this kind somewhere in the landscape."""
    spec = THINGS[kind]
    height = scale * float(rng.uniform(*spec.heights))
    half = spec.half_width * height + 0.01
    return Thing(
        kind=kind,
        colour=_choice(rng, spec.usual),
        x=float(rng.uniform(half, 1 - half)) if x is None else x,
        y=_foot(rng, kind, height, land),
        height=height,
        light=float(rng.random()),
        warmth=float(rng.random()),
        form=float(rng.random()),
        flip=1 if rng.random() < 0.5 else -1,
        striped=bool(rng.random() < 0.12),
    )  # fmt: skip


def _fitting(land: Landscape) -> list[str]:
    """Return the kinds of objects that this landscape has a place for."""
    wet = land.shore > land.horizon
    return [name for name, kind in THINGS.items() if wet or kind.place != "water"]


def _fill(
    rng: np.random.Generator, land: Landscape, first: Sequence[Thing], count: int
) -> list[Thing]:
    """Return `first` and up to `count` further objects that hide each other hardly or not."""
    things = list(first)
    for _ in range(_TRIES):
        if len(things) >= count + len(first):
            break
        twin = bool(things) and rng.random() < 0.25
        kind = things[0].kind if twin else _choice(rng, _fitting(land))
        thing = _thing(rng, kind, land)
        if _inside(thing) and _clear(thing, things):
            things.append(thing)
    return things


@dataclass(frozen=True)
class _Draft:
    """An edit before it is drawn."""

    before: World
    after: World
    instruction: str
    opens: tuple[Open, ...] = ()


_SHADE = ("light", "warmth")


def _shade(index: int) -> tuple[Open, ...]:
    return tuple(Open(index, name, 0.0, 1.0) for name in _SHADE)


def _subject(
    rng: np.random.Generator, land: Landscape, case: str, wanted: Callable[[str], bool] = bool
) -> Thing | None:
    """Return the object that will be edited, of the kind and size that the case asks for."""
    options = [kind for kind in _fitting(land) if wanted(kind)]
    if case == "thin":
        options = [kind for kind in options if kind in _THIN]
    elif case == "shadow":
        options = [kind for kind in _CASTING if kind in options]
    elif case == "busy":
        options = [kind for kind in options if THINGS[kind].place == "ground"]
    if not options:
        return None
    kind = _choice(rng, options)
    low, high = THINGS[kind].heights
    scale = 1.0
    if case == "small":
        scale = (
            float(rng.uniform(0.05, 0.09))
            / (0.5 * (low + high))
            / max(1.0, THINGS[kind].half_width) ** 0.5
        )
    return _thing(rng, kind, land, scale)


def _recolour(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case)
    if thing is None or not _inside(thing):
        return None
    if case == "near colour":
        pair = NEAR_COLOURS[int(rng.integers(len(NEAR_COLOURS)))]
        old, new = pair if rng.random() < 0.5 else pair[::-1]
        thing = replace(thing, colour=old)
    else:
        distances = {
            word: np.linalg.norm(np.subtract(colour, COLOURS[thing.colour]))
            for word, colour in COLOURS.items()
        }
        new = _choice(rng, [w for w, d in distances.items() if d >= _CLEAR_COLOUR_STEP])
    things = _fill(rng, land, [thing], int(rng.integers(1, 4)))
    known = names(things, 0)
    if not known:
        return None
    before = World(land, tuple(things))
    light, warmth = rng.random(2).tolist()
    after = before.having(0, replace(thing, colour=new, light=light, warmth=warmth))
    words = say(rng, "recolour", name=_choice(rng, known), colour=new)
    return _Draft(before, after, words, _shade(0))


def _texture(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case, lambda kind: kind not in ("bird", "lamp"))
    if thing is None or not _inside(thing):
        return None
    thing = replace(thing, striped=False)
    things = _fill(rng, land, [thing], int(rng.integers(1, 4)))
    known = names(things, 0)
    if not known:
        return None
    before = World(land, tuple(things))
    words = say(rng, "texture", name=_choice(rng, known))
    return _Draft(before, before.having(0, replace(thing, striped=True)), words)


def _remove(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case)
    if thing is None or not _inside(thing):
        return None
    things = _fill(rng, land, [thing], int(rng.integers(0, 4)))
    known = names(things, 0)
    if not known:
        return None
    before = World(land, tuple(things))
    return _Draft(before, before.without(0), say(rng, "remove", name=_choice(rng, known)))


def _replace(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case)
    if thing is None or not _inside(thing):
        return None
    things = _fill(rng, land, [thing], int(rng.integers(0, 3)))
    known = names(things, 0)
    place = THINGS[thing.kind].place
    options = [k for k, v in THINGS.items() if v.place == place and k != thing.kind]
    new_kind = _choice(rng, options)
    spec = THINGS[new_kind]
    area = thing.height**2 * THINGS[thing.kind].half_width
    height = float((area / spec.half_width) ** 0.5)
    if case != "small":
        height = float(np.clip(height, spec.heights[0], spec.heights[1]))
    low, high = 0.9 * height, 1.1 * height
    new = Thing(
        new_kind, _choice(rng, tuple(COLOURS)), thing.x, thing.y, float(rng.uniform(low, high)),
        *rng.random(3).tolist(), flip=1 if rng.random() < 0.5 else -1,
    )  # fmt: skip
    if not known or not _inside(replace(new, height=high)) or not _clear(new, things[1:]):
        return None
    before = World(land, tuple(things))
    words = say(rng, "replace", name=_choice(rng, known), new=f"{new.colour} {new_kind}")
    opens = (
        Open(0, "height", low, high),
        *_shade(0),
        Open(0, "form", 0, 1),
        Open(0, "flip", -1, 1),
    )
    return _Draft(before, before.having(0, new), words, opens)


def _add(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case)
    if thing is None:
        return None
    side = _choice(rng, tuple(_COLUMNS))
    spec = THINGS[thing.kind]
    middle = thing.height if case == "small" else 0.5 * sum(spec.heights)
    low, high = 0.85 * middle, 1.15 * middle
    reach = spec.half_width * high + 0.015
    left = max(_COLUMNS[side] - _COLUMN_HALF, reach)
    right = min(_COLUMNS[side] + _COLUMN_HALF, 1 - reach)
    if right - left < 0.02:
        left, right = _COLUMNS[side] - 0.01, _COLUMNS[side] + 0.01
    y = _foot(rng, thing.kind, high, land)
    room = 0.0 if spec.place == "water" else 0.04
    bottom, top = min(y + room, 0.985), y - room
    new = replace(
        thing, colour=_choice(rng, tuple(COLOURS)), striped=False,
        x=float(rng.uniform(left, right)), y=float(rng.uniform(top, bottom)),
        height=float(rng.uniform(low, high)),
    )  # fmt: skip
    if not _inside(new):
        return None
    things = _fill(rng, land, [new], int(rng.integers(1, 4)))
    before = World(land, tuple(things[1:]))
    words = say(rng, "add", new=f"{new.colour} {new.kind}", place=PLACES[side])
    sky = spec.place == "sky"
    lowest = high + 0.02 if sky else min(land.shore + 0.1, 0.9)
    deepest = max(high + 0.05, land.horizon - 0.08) if sky else 0.985
    if spec.place == "water":
        depth = land.shore - land.horizon
        lowest, deepest = land.horizon + 0.4 * depth, land.horizon + 0.6 * depth
    opens = (
        Open(0, "x", left, right), Open(0, "y", lowest, deepest), Open(0, "height", low, high),
        *_shade(0), Open(0, "form", 0, 1), Open(0, "flip", -1, 1),
    )  # fmt: skip
    return _Draft(before, World(land, tuple(things)), words, opens)


def _move(rng: np.random.Generator, land: Landscape, case: str) -> _Draft | None:
    thing = _subject(rng, land, case)
    if thing is None or not _inside(thing):
        return None
    side = _choice(rng, tuple(_COLUMNS))
    reach = THINGS[thing.kind].half_width * thing.height + 0.015
    left = max(_COLUMNS[side] - _COLUMN_HALF, reach)
    right = min(_COLUMNS[side] + _COLUMN_HALF, 1 - reach)
    moved = replace(thing, x=float(rng.uniform(left, right))) if left < right else thing
    if abs(moved.x - thing.x) < 0.25 or not _inside(moved):
        return None
    others = _fill(rng, land, [thing, moved], int(rng.integers(0, 3)))[2:]
    things = (thing, *others)
    known = names(things, 0)
    if not known:
        return None
    before = World(land, things)
    words = say(rng, "move", name=_choice(rng, known), side=side)
    return _Draft(before, before.having(0, moved), words, (Open(0, "x", left, right),))


def _whole(kind: str) -> Callable[[np.random.Generator, Landscape, str], _Draft | None]:
    def draft(rng: np.random.Generator, land: Landscape, _: str) -> _Draft:
        before = World(land, tuple(_fill(rng, land, [], int(rng.integers(2, 5)))))
        if kind == "night":
            after = replace(before, landscape=replace(land, hour="night"))
        elif kind in ("winter", "autumn"):
            after = replace(before, landscape=replace(land, season=kind))
        elif kind == "sepia":
            after = replace(before, toned=True)
        else:
            after = replace(before, zoom=_ZOOM)
        return _Draft(before, after, say(rng, kind))

    return draft


_DRAFTS: dict[str, Callable[[np.random.Generator, Landscape, str], _Draft | None]] = {
    "recolour": _recolour, "texture": _texture, "remove": _remove, "replace": _replace,
    "add": _add, "move": _move, **{kind: _whole(kind) for kind in WHOLE_KINDS},
}  # fmt: skip


def make_scene(seed: int, kind: str | None = None, size: int = 256, split: str = "easy") -> Scene:
    """Make one scene; equal arguments give equal scenes.

    Args:
        seed: any non-negative integer. The splits draw from separate streams.
        kind: one of `KINDS`; drawn from the seed where None.
        size: side in pixels.
        split: "easy", or "hard": near colours, objects of about one token, thin lines, shadows
            and reflections, slight changes of texture, busy ground. "train" has both.

    Raises:
        ValueError: unknown kind or split, or a kind that the hard split does not have.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; expected one of {KINDS}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {SPLITS}")
    cases = [c for c in CASES if kind is None or kind in _KINDS_OF_CASE[c]]
    if split == "hard" and not cases:
        raise ValueError(f"the hard split has no {kind!r}: expected one of {LOCAL_KINDS}")
    rng = np.random.default_rng([SPLITS.index(split), seed])
    hard = split == "hard" or (split == "train" and rng.random() < _HARD_IN_TRAINING)
    while True:
        case = _choice(rng, cases) if hard and cases else ""
        drawn = kind or (
            _choice(rng, _KINDS_OF_CASE[case]) if case else str(rng.choice(KINDS, p=_SHARES))
        )
        land = draw_landscape(rng)
        if case == "busy":
            land = replace(land, ground=_choice(rng, _BUSY))
        if case == "shadow":
            land = replace(land, shadow=(float(rng.uniform(0.4, 0.6)), land.shadow[1]))
        draft = _DRAFTS[drawn](rng, land, case)
        if draft is not None:
            break
    source, target = render(draft.before, size), render(draft.after, size)
    mask = (source != target).any(axis=-1)
    return Scene(
        source, target, draft.instruction, mask, drawn, case, draft.before, draft.after,
        draft.opens,
    )  # fmt: skip
