"""A whole picture of the toy world, described by numbers and drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .landscape import Landscape
from .palette import sepia
from .pen import Canvas, Pen
from .things import KINDS, Setting, Thing

_ENLARGED_SIDE = 384  # pixels at least, of the canvas before it is made smaller


@dataclass(frozen=True)
class World:
    """A landscape and the objects in it; `zoom` enlarges it, `toned` makes it sepia."""

    landscape: Landscape
    things: tuple[Thing, ...]
    zoom: float = 1.0
    toned: bool = False

    def without(self, index: int) -> "World":
        """Return the world without one object."""
        return replace(self, things=self.things[:index] + self.things[index + 1 :])

    def having(self, index: int, thing: Thing) -> "World":
        """Return the world with `thing` in the place of object `index`."""
        things = (*self.things[:index], thing, *self.things[index + 1 :])
        return replace(self, things=things)


def render(world: World, size: int) -> np.ndarray:
    """Return the picture as uint8 [size, size, 3]; edges are antialiased."""
    canvas = Canvas(size, max(2, round(_ENLARGED_SIDE / size)), world.zoom)
    landscape = world.landscape
    landscape.draw_far(canvas)
    standing = [thing for thing in world.things if KINDS[thing.kind].place == "ground"]
    _draw_things(canvas, landscape, [thing for thing in world.things if thing not in standing])
    landscape.draw_near(canvas)
    _draw_things(canvas, landscape, standing)
    picture = canvas.picture()
    return sepia(picture) if world.toned else picture


def _draw_things(canvas: Canvas, landscape: Landscape, things: Sequence[Thing]) -> None:
    """Draw objects, those of the sky first and nearer ones later, with shadows or reflections."""
    setting = Setting(landscape.hour == "night", landscape.season)
    for thing in sorted(things, key=_depth):
        kind = KINDS[thing.kind]
        pen = Pen(
            canvas, (thing.x, thing.y), thing.height, landscape.light, thing.flip,
            ink=landscape.ink,
        )  # fmt: skip
        if kind.place == "water":
            water = landscape.light.on(landscape.water)
            mirrored = replace(pen, upright=-0.45, tint=water, tinted=0.55, ink=0.0)
            kind.draw(mirrored, thing, setting)
        elif kind.place == "ground":
            strength, lean = landscape.shadow
            half = kind.half_width * thing.height
            centre = thing.x + 0.5 * lean * thing.height, thing.y
            radii = 0.9 * half + 0.25 * abs(lean) * thing.height, max(0.018, 0.13 * half)
            canvas.darken(centre, radii, strength)
        kind.draw(pen, thing, setting)


def _depth(thing: Thing) -> tuple[int, float]:
    return KINDS[thing.kind].place != "sky", thing.y
