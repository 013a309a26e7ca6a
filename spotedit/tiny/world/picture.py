"""Describe a whole picture of the toy world by numbers, and draw it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .landscape import Landscape
from .palette import sepia
from .pen import Canvas, Pen
from .things import KINDS, Setting, Thing

_MIN_CANVAS_SIDE = 384  # pixels; the canvas is scaled down to the picture's size at the end


@dataclass(frozen=True)
class World:
    """A landscape and the objects in it.

    Attributes:
        landscape: what lies behind the objects.
        things: the objects.
        zoom: factor by which the picture is enlarged about its centre.
        toned: whether the picture is in sepia tones.
    """

    landscape: Landscape
    things: tuple[Thing, ...]
    zoom: float = 1.0
    toned: bool = False

    def without(self, index: int) -> "World":
        """Return the world without one object."""
        return replace(self, things=self.things[:index] + self.things[index + 1 :])

    def having(self, index: int, thing: Thing) -> "World":
        """Return the world with object `index` replaced by `thing`."""
        things = (*self.things[:index], thing, *self.things[index + 1 :])
        return replace(self, things=things)


def render(world: World, size: int) -> np.ndarray:
    """Return the picture as uint8 [size, size, 3]; edges are antialiased."""
    canvas = Canvas(size, max(2, round(_MIN_CANVAS_SIDE / size)), world.zoom)
    landscape = world.landscape
    landscape.draw_far(canvas)
    standing = [thing for thing in world.things if KINDS[thing.kind].place == "ground"]
    _draw_things(canvas, landscape, [thing for thing in world.things if thing not in standing])
    landscape.draw_near(canvas)
    _draw_things(canvas, landscape, standing)
    picture = canvas.picture()
    return sepia(picture) if world.toned else picture


def _draw_things(canvas: Canvas, landscape: Landscape, things: Sequence[Thing]) -> None:
    """Draw the objects from back to front, the sky's first, with their shadows or reflections."""
    setting = Setting(landscape.hour == "night", landscape.season)
    for thing in sorted(things, key=_depth):
        kind = KINDS[thing.kind]
        pen = Pen(
            canvas, (thing.x, thing.y), thing.height, landscape.light, thing.flip,
            ink=landscape.ink,
        )  # fmt: skip
        if kind.place == "water":
            water = landscape.light.on(landscape.water)
            reflection = replace(pen, upright=-0.45, tint=water, tinted=0.55, ink=0.0)
            kind.draw(reflection, thing, setting)
        elif kind.place == "ground":
            strength, lean = landscape.shadow
            half = kind.half_width * thing.height
            centre = thing.x + 0.5 * lean * thing.height, thing.y
            radii = 0.9 * half + 0.25 * abs(lean) * thing.height, max(0.018, 0.13 * half)
            canvas.darken(centre, radii, strength)
        kind.draw(pen, thing, setting)


def _depth(thing: Thing) -> tuple[bool, float]:
    is_below_sky = KINDS[thing.kind].place != "sky"
    return is_below_sky, thing.y
