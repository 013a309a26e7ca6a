"""Define the objects of the toy world: how each is drawn, where it belongs, how large it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .palette import Colour, mix, scaled, shade
from .pen import Pen

WOOD: Colour = (112, 78, 50)
DARK: Colour = (52, 50, 58)
SNOW: Colour = (244, 247, 252)
GLASS: Colour = (176, 212, 232)
LAMPLIGHT: Colour = (255, 226, 130)
CREAM: Colour = (246, 238, 220)
SKIN: Colour = (232, 184, 150)


@dataclass(frozen=True)
class Thing:
    """One object of a picture.

    Attributes:
        kind: a key of `KINDS`.
        colour: the colour of the main part, a key of `palette.COLOURS`.
        x, y: the foot, in picture coordinates 0..1 with y downward.
        height: height as a share of the picture's side.
        light, warmth: the shade of the colour, 0..1.
        form: the build, 0..1; its meaning depends on the kind.
        flip: -1 mirrors the object, 1 does not.
        striped: whether the main part has stripes.
    """

    kind: str
    colour: str
    x: float
    y: float
    height: float
    light: float = 0.5
    warmth: float = 0.5
    form: float = 0.5
    flip: int = 1
    striped: bool = False

    @property
    def main(self) -> Colour:
        """The shade of the main part."""
        return shade(self.colour, self.light, self.warmth)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in picture coordinates, without outlines and shadow."""
        half_width = KINDS[self.kind].half_width * self.height
        return self.x - half_width, self.y - self.height, self.x + half_width, self.y


@dataclass(frozen=True)
class Setting:
    """The surroundings of an object: at night its windows are lit, in winter snow lies on it."""

    night: bool = False
    season: str = "summer"

    def leaves(self, thing: Thing) -> Colour:
        """Return the colour of a plant's leaves; green leaves turn orange in autumn."""
        if self.season == "autumn" and thing.colour == "green":
            return mix(thing.main, (224, 120, 34), 0.85)
        return thing.main


Draw = Callable[[Pen, Thing, Setting], None]


def _band(thing: Thing) -> Colour:
    """Return the colour of stripes and dots: dark if the main part is pale, else pale."""
    is_pale = min(thing.main) > 165
    return mix(thing.main, DARK, 0.5) if is_pale else mix(thing.main, CREAM, 0.8)


def _stripes(pen: Pen, thing: Thing, u: float, v: float, width: float, height: float) -> None:
    """Draw three bands over a rectangle of the main part if the object is striped."""
    if not thing.striped:
        return
    for i in range(3):
        pen.box(u, v + (2 * i + 0.5) * height / 6, width, height / 6, _band(thing))


def _house(pen: Pen, thing: Thing, setting: Setting) -> None:
    body, top = thing.main, 0.5 + 0.12 * thing.form
    roof = SNOW if setting.season == "winter" else mix((150, 70, 54), (92, 96, 112), thing.form)
    pane = LAMPLIGHT if setting.night else GLASS
    pen.box(0.2, 0.8, 0.12, 0.18, scaled(body, 0.7))
    pen.box(-0.46, 0, 0.92, top, body)
    _stripes(pen, thing, -0.46, 0, 0.92, top)
    pen.polygon([(-0.56, top), (0, 1.0), (0.56, top)], roof)
    pen.box(-0.1, 0, 0.2, 0.33, WOOD)
    for u in (-0.37, 0.19):
        pen.box(u, 0.2, 0.18, 0.18, pane, glow=setting.night)


def _tree(pen: Pen, thing: Thing, setting: Setting) -> None:
    crown, spread = setting.leaves(thing), 0.26 + 0.08 * thing.form
    pen.polygon([(-0.07, 0), (0.07, 0), (0.04, 0.5), (-0.04, 0.5)], WOOD)
    for u, v, r in ((-0.2, 0.52, 0.9), (0.2, 0.54, 0.9), (0.0, 0.7, 1.1)):
        pen.ellipse(u, v, r * spread, min(0.27 * r, 1 - v), crown)
    pen.ellipse(-0.06, 0.76, 0.5 * spread, 0.12, mix(crown, (255, 255, 220), 0.18))
    if thing.striped:
        for u, v in ((-0.2, 0.5), (0.18, 0.52), (0.05, 0.72), (0.0, 0.48)):
            pen.ellipse(u, v, 0.05, 0.05, _band(thing))
    if setting.season == "winter":
        pen.ellipse(0.0, 0.89, 0.8 * spread, 0.1, SNOW)


def _fir(pen: Pen, thing: Thing, setting: Setting) -> None:
    pen.box(-0.05, 0, 0.1, 0.2, WOOD)
    wide = 0.28 + 0.1 * thing.form
    for i, (low, high) in enumerate(((0.14, 0.58), (0.36, 0.78), (0.58, 1.0))):
        half = wide * (1 - 0.25 * i)
        leaf = scaled(thing.main, 0.92 + 0.08 * i)
        pen.polygon([(-half, low), (0, high), (half, low)], leaf)
        if thing.striped:
            pen.box(-0.55 * half, low + 0.06, 1.1 * half, 0.04, _band(thing))
        if setting.season == "winter":
            pen.polygon([(-0.45 * half, high - 0.2), (0, high), (0.45 * half, high - 0.2)], SNOW)


def _car(pen: Pen, thing: Thing, setting: Setting) -> None:
    cabin = 0.1 * (thing.form - 0.5)
    pane = LAMPLIGHT if setting.night else GLASS
    pen.polygon([(-0.62, 0.5), (-0.42, 1.0), (0.34 + cabin, 1.0), (0.62 + cabin, 0.5)], thing.main)
    pen.polygon([(-0.48, 0.54), (-0.36, 0.9), (-0.06, 0.9), (-0.06, 0.54)], pane, setting.night)
    pen.polygon(
        [(0.02, 0.54), (0.02, 0.9), (0.3 + cabin, 0.9), (0.48 + cabin, 0.54)], pane, setting.night
    )
    pen.polygon([(-1.0, 0.16), (-1.0, 0.5), (0.9, 0.54), (1.0, 0.4), (1.0, 0.16)], thing.main)
    _stripes(pen, thing, -1.0, 0.2, 2.0, 0.28)
    if setting.season == "winter":
        pen.box(-0.42, 0.96, 0.76 + cabin, 0.1, SNOW)
    for u in (-0.55, 0.55):
        pen.ellipse(u, 0.19, 0.2, 0.19, DARK)
        pen.ellipse(u, 0.19, 0.09, 0.085, (178, 178, 184))


def _boat(pen: Pen, thing: Thing, _: Setting) -> None:
    pen.line([(0, 0.2), (0, 1.0)], 0.035, WOOD)
    pen.polygon([(0.04, 0.28), (0.04, 0.98), (0.42 + 0.1 * thing.form, 0.28)], CREAM)
    pen.polygon([(-0.04, 0.3), (-0.04, 0.86), (-0.32, 0.3)], scaled(CREAM, 0.9))
    pen.polygon([(-0.52, 0.24), (-0.36, 0), (0.36, 0), (0.56, 0.24)], thing.main)
    if thing.striped:
        pen.box(-0.46, 0.12, 0.92, 0.06, _band(thing))


def _balloon(pen: Pen, thing: Thing, _: Setting) -> None:
    for u in (-0.1, 0.1):
        pen.line([(u, 0.12), (2 * u, 0.42)], 0.02, WOOD)
    pen.box(-0.1, 0, 0.2, 0.14, WOOD)
    wide = 0.34 + 0.05 * thing.form
    pen.polygon([(-0.8 * wide, 0.52), (-0.12, 0.3), (0.12, 0.3), (0.8 * wide, 0.52)], thing.main)
    pen.ellipse(0, 0.66, wide, 0.34, thing.main)
    second = _band(thing) if thing.striped else mix(thing.main, (255, 255, 255), 0.25)
    pen.ellipse(0, 0.66, 0.45 * wide, 0.33, second)
    if thing.striped:
        pen.ellipse(0, 0.66, 0.16 * wide, 0.32, thing.main)


def _kite(pen: Pen, thing: Thing, _: Setting) -> None:
    tail = [(0.06 * math.sin(9 * v), v) for v in (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)]
    pen.line(tail, 0.03, mix(thing.main, DARK, 0.4))
    wide = 0.26 + 0.08 * thing.form
    pen.polygon([(0, 0.44), (-wide, 0.76), (0, 1.0), (wide, 0.76)], thing.main)
    pen.polygon([(0, 0.44), (0, 1.0), (wide, 0.76)], scaled(thing.main, 0.82))
    if thing.striped:
        pen.polygon(
            [(-wide, 0.76), (-0.6 * wide, 0.85), (0.6 * wide, 0.85), (wide, 0.76)], _band(thing)
        )


def _cloud(pen: Pen, thing: Thing, _: Setting) -> None:
    puff = 0.62 + 0.14 * thing.form
    for u, v, r in ((-0.85, 0.38, 0.36), (0.85, 0.36, 0.34), (-0.3, 0.55, 0.45), (0.35, 0.5, puff)):
        pen.ellipse(u, v, r, min(v, r), thing.main)
    pen.box(-0.9, 0.02, 1.8, 0.36, thing.main)
    _stripes(pen, thing, -0.9, 0.05, 1.8, 0.5)


def _bird(pen: Pen, thing: Thing, _: Setting) -> None:
    lift = 0.7 + 0.3 * thing.form
    pen.polygon([(-1.0, lift), (-0.45, 1.0), (0, 0.4), (0, 0.1), (-0.5, 0.68)], thing.main)
    pen.polygon([(1.0, lift), (0.45, 1.0), (0, 0.4), (0, 0.1), (0.5, 0.68)], thing.main)
    pen.ellipse(0, 0.25, 0.2, 0.24, scaled(thing.main, 0.85))


def _tent(pen: Pen, thing: Thing, setting: Setting) -> None:
    inside = LAMPLIGHT if setting.night else scaled(thing.main, 0.45)
    wide = 0.75 + 0.2 * thing.form
    pen.polygon([(-wide, 0), (0, 1.0), (wide, 0)], thing.main)
    if thing.striped:
        pen.polygon([(-0.66 * wide, 0), (0, 1.0), (-0.33 * wide, 0)], _band(thing))
        pen.polygon([(0.66 * wide, 0), (0, 1.0), (0.33 * wide, 0)], _band(thing))
    pen.polygon([(-0.26, 0), (0, 0.66), (0.26, 0)], inside, setting.night)
    if setting.season == "winter":
        pen.polygon([(-0.24 * wide, 0.76), (0, 1.0), (0.24 * wide, 0.76)], SNOW)


def _flag(pen: Pen, thing: Thing, _: Setting) -> None:
    pen.line([(0, 0), (0, 1.0)], 0.03, scaled(CREAM, 0.8))
    dip = 0.12 * (thing.form - 0.5)
    cloth = [(0.01, 0.96), (0.3, 0.94 + dip), (0.62, 0.96 - dip), (0.62, 0.6 - dip),
             (0.3, 0.58 + dip), (0.01, 0.6)]  # fmt: skip
    pen.polygon(cloth, thing.main)
    if thing.striped:
        pen.polygon(
            [(0.01, 0.84), (0.62, 0.84 - dip), (0.62, 0.72 - dip), (0.01, 0.72)], _band(thing)
        )


def _lamp(pen: Pen, thing: Thing, setting: Setting) -> None:
    glass = LAMPLIGHT if setting.night else CREAM
    pen.box(-0.07, 0, 0.14, 0.06, thing.main)
    pen.line([(0, 0.04), (0, 0.8)], 0.035, thing.main)
    wide = 0.09 + 0.03 * thing.form
    pen.polygon([(-wide, 0.92), (-0.6 * wide, 0.78), (0.6 * wide, 0.78), (wide, 0.92)], glass, True)
    pen.polygon([(-1.3 * wide, 0.92), (0, 1.0), (1.3 * wide, 0.92)], thing.main)


def _person(pen: Pen, thing: Thing, _: Setting) -> None:
    for u in (-0.07, 0.07):
        pen.line([(u, 0), (u, 0.36)], 0.09, DARK)
    wide = 0.15 + 0.04 * thing.form
    pen.polygon([(-wide, 0.3), (-0.11, 0.76), (0.11, 0.76), (wide, 0.3)], thing.main)
    _stripes(pen, thing, -0.12, 0.36, 0.24, 0.36)
    pen.line([(-0.12, 0.7), (-0.22, 0.46)], 0.07, scaled(thing.main, 0.85))
    pen.line([(0.12, 0.7), (0.22, 0.5)], 0.07, scaled(thing.main, 0.85))
    pen.ellipse(0, 0.87, 0.1, 0.12, SKIN)
    pen.polygon([(-0.11, 0.9), (-0.06, 1.0), (0.06, 1.0), (0.11, 0.9)], WOOD)


def _bush(pen: Pen, thing: Thing, setting: Setting) -> None:
    leaf, tall = setting.leaves(thing), 0.38 + 0.1 * thing.form
    for u, v, r in ((-0.5, 0.36, 0.4), (0.5, 0.34, 0.38), (0.0, 1 - tall, 0.5)):
        pen.ellipse(u, v, r, min(v, tall), leaf)
    spots = _band(thing) if thing.striped else mix(leaf, (255, 255, 220), 0.16)
    for u, v in ((-0.45, 0.45), (0.05, 0.7), (0.4, 0.4)):
        pen.ellipse(u, v, 0.1, 0.09, spots)
    if setting.season == "winter":
        pen.ellipse(0, 0.86, 0.36, 0.13, SNOW)


def _mushroom(pen: Pen, thing: Thing, _: Setting) -> None:
    pen.polygon([(-0.16, 0), (0.16, 0), (0.11, 0.5), (-0.11, 0.5)], CREAM)
    wide, cap = 0.48 + 0.1 * thing.form, []
    for i in range(17):
        angle = math.pi * i / 16
        cap.append((wide * math.cos(angle), 0.44 + 0.56 * math.sin(angle)))
    pen.polygon(cap, thing.main)
    if thing.striped:
        for u, v in ((-0.24, 0.6), (0.22, 0.62), (0.0, 0.82)):
            pen.ellipse(u, v, 0.08, 0.07, _band(thing))


def _flower(pen: Pen, thing: Thing, _: Setting) -> None:
    pen.line([(0, 0), (0, 0.7)], 0.05, (70, 130, 60))
    pen.polygon([(0, 0.2), (0.22, 0.42), (0.02, 0.36)], (70, 130, 60))
    reach = 0.17 + 0.04 * thing.form
    for i in range(6):
        angle = math.pi * i / 3
        petal = _band(thing) if thing.striped and i % 2 else thing.main
        pen.ellipse(reach * math.cos(angle), 0.73 + reach * math.sin(angle), 0.12, 0.12, petal)
    pen.ellipse(0, 0.73, 0.1, 0.1, (246, 206, 90) if thing.colour != "yellow" else WOOD)


def _sheep(pen: Pen, thing: Thing, _: Setting) -> None:
    for u in (-0.4, -0.2, 0.25, 0.45):
        pen.line([(u, 0), (u, 0.4)], 0.1, DARK)
    fluff = 0.26 + 0.06 * thing.form
    for u, v in ((-0.42, 0.58), (0.4, 0.58), (0.0, 0.52), (-0.18, 0.7), (0.2, 0.7)):
        pen.ellipse(u, v, 0.32, fluff, thing.main)
    _stripes(pen, thing, -0.5, 0.42, 1.0, 0.4)
    pen.ellipse(-0.72, 0.7, 0.18, 0.2, DARK)


def _duck(pen: Pen, thing: Thing, _: Setting) -> None:
    pen.polygon([(-0.9, 0.34), (-0.6, 0), (0.5, 0), (0.9, 0.5), (0.3, 0.4)], thing.main)
    pen.ellipse(-0.1, 0.22, 0.68, 0.22, thing.main)
    pen.ellipse(-0.6, 0.66, 0.3 + 0.06 * thing.form, 0.32, thing.main)
    pen.polygon([(-0.86, 0.74), (-1.2, 0.6), (-0.84, 0.56)], (240, 160, 50))
    pen.ellipse(-0.66, 0.74, 0.06, 0.06, DARK)
    if thing.striped:
        pen.polygon([(-0.2, 0.3), (0.5, 0.36), (0.2, 0.12)], _band(thing))


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        draw: draws one object with a pen.
        place: "ground", "sky" or "water".
        heights: smallest and largest height, as shares of the picture's side.
        half_width: half of the width, in heights.
        usual: its colours when the instruction does not name one; repeated ones are more frequent.
    """

    draw: Draw
    place: str
    heights: tuple[float, float]
    half_width: float
    usual: tuple[str, ...]


_PAINT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown")
_LEAF = ("green", "green", "green", "orange", "red", "pink")
KINDS: dict[str, Kind] = {
    "house": Kind(_house, "ground", (0.2, 0.46), 0.56, _PAINT),
    "tree": Kind(_tree, "ground", (0.2, 0.5), 0.5, _LEAF),
    "fir": Kind(_fir, "ground", (0.2, 0.5), 0.38, ("green", "green", "blue", "white")),
    "car": Kind(_car, "ground", (0.09, 0.2), 1.0, _PAINT),
    "tent": Kind(_tent, "ground", (0.12, 0.3), 0.95, _PAINT),
    "flag": Kind(_flag, "ground", (0.2, 0.4), 0.62, _PAINT),
    "lamp": Kind(_lamp, "ground", (0.26, 0.44), 0.16, ("black", "green", "blue", "red")),
    "person": Kind(_person, "ground", (0.16, 0.36), 0.26, _PAINT),
    "bush": Kind(_bush, "ground", (0.09, 0.2), 0.9, _LEAF),
    "mushroom": Kind(_mushroom, "ground", (0.1, 0.24), 0.58, ("red", "brown", "orange", "pink")),
    "flower": Kind(_flower, "ground", (0.12, 0.26), 0.33, _PAINT),
    "sheep": Kind(_sheep, "ground", (0.1, 0.2), 0.92, ("white", "white", "black", "brown")),
    "boat": Kind(_boat, "water", (0.16, 0.34), 0.56, _PAINT),
    "duck": Kind(_duck, "water", (0.07, 0.13), 1.2, ("yellow", "white", "brown", "white")),
    "balloon": Kind(_balloon, "sky", (0.18, 0.36), 0.4, _PAINT),
    "kite": Kind(_kite, "sky", (0.16, 0.3), 0.34, _PAINT),
    "cloud": Kind(_cloud, "sky", (0.07, 0.13), 1.25, ("white", "white", "pink", "black")),
    "bird": Kind(_bird, "sky", (0.05, 0.08), 1.0, ("black", "white", "brown", "blue")),
}


def overlap(first: Thing, second: Thing) -> float:
    """Return the common area of two objects' boxes as a share of the smaller box."""
    a, b = first.box, second.box
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / area
