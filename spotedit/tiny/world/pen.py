"""Drawing in picture coordinates on an enlarged canvas, and at an object's own scale."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from .palette import Colour, Light, mix, scaled

Point = tuple[float, float]


@dataclass
class Canvas:
    """A square picture drawn larger than it will be, so that edges come out smooth.

    Points are (x, y) in 0..1, y downward. `zoom` enlarges everything about the centre.
    """

    size: int
    enlarged: int
    zoom: float = 1.0
    image: Image.Image = field(init=False)
    drawing: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.side, self.side))
        self.drawing = ImageDraw.Draw(self.image)

    @property
    def side(self) -> int:
        """Side of the enlarged picture in pixels."""
        return self.size * self.enlarged

    def at(self, x: float, y: float) -> Point:
        """Return the enlarged picture's coordinates of a point."""
        zoom, side = self.zoom, self.side
        return ((x - 0.5) * zoom + 0.5) * side, ((y - 0.5) * zoom + 0.5) * side

    def length(self, share: float) -> float:
        """Return a length, given as a share of the side, in enlarged pixels."""
        return share * self.zoom * self.side

    def places(self) -> np.ndarray:
        """Return the coordinates 0..1 of the enlarged pixels' centres along one side."""
        return ((np.arange(self.side) + 0.5) / self.side - 0.5) / self.zoom + 0.5

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self.drawing.polygon([self.at(x, y) for x, y in points], fill=whole(colour))

    def darken(self, centre: Point, radii: Point, strength: float) -> None:
        """Lay a soft elliptic shadow over what is drawn so far."""
        reach = 1.8
        left, top = self.at(centre[0] - reach * radii[0], centre[1] - reach * radii[1])
        right, bottom = self.at(centre[0] + reach * radii[0], centre[1] + reach * radii[1])
        x0, y0 = max(0, int(left)), max(0, int(top))
        x1, y1 = min(self.side, int(right) + 1), min(self.side, int(bottom) + 1)
        if x0 >= x1 or y0 >= y1:
            return
        places = self.places()
        x = (places[x0:x1] - centre[0]) / radii[0]
        y = (places[y0:y1] - centre[1]) / radii[1]
        away = x[None, :] ** 2 + y[:, None] ** 2
        light = 1 - strength * np.exp(-1.5 * away) * (away < reach**2)
        patch = np.asarray(self.image.crop((x0, y0, x1, y1)), dtype=np.float32)
        darker = np.rint(patch * light[..., None].astype(np.float32)).astype(np.uint8)
        self.image.paste(Image.fromarray(darker), (x0, y0))

    def picture(self) -> np.ndarray:
        """Return the picture at its own size, uint8 [size, size, 3]."""
        return np.asarray(self.image.reduce(self.enlarged))


@dataclass(frozen=True)
class Pen:
    """Draws one object: (0, 0) is its foot, (0, 1) its top; lengths are in its heights.

    Attributes:
        foot: where the object stands, in picture coordinates.
        height: of the object, as a share of the picture's side.
        flip: -1 mirrors left and right, 1 does not.
        upright: 1, or a negative factor for a reflection below the foot.
        light: what the hour does to the colours.
        tint, tinted: a colour mixed into all others, and its share (for reflections).
        ink: width of the outlines, in the picture's sides; 0 for none.
    """

    canvas: Canvas
    foot: Point
    height: float
    light: Light
    flip: int = 1
    upright: float = 1.0
    tint: Colour = (0.0, 0.0, 0.0)
    tinted: float = 0.0
    ink: float = 0.0

    def at(self, u: float, v: float) -> Point:
        """Return the enlarged picture's coordinates of a point of the object."""
        x = self.foot[0] + self.flip * u * self.height
        y = self.foot[1] - self.upright * v * self.height
        return self.canvas.at(x, y)

    def seen(self, colour: Colour, glow: bool = False) -> tuple[int, int, int]:
        """Return a colour as drawn: in the hour's light unless it glows, and tinted."""
        lit = colour if glow else self.light.on(colour)
        return whole(mix(lit, self.tint, self.tinted))

    def _pixels(self, width: float) -> int:
        return max(1, round(self.canvas.length(width)))

    def polygon(self, points: Sequence[Point], colour: Colour, glow: bool = False) -> None:
        """Fill a polygon, outlined where the style has ink."""
        corners = [self.at(u, v) for u, v in points]
        self.canvas.drawing.polygon(corners, fill=self.seen(colour, glow))
        if self.ink:
            outline = self.seen(scaled(colour, 0.45))
            width = self._pixels(self.ink)
            self.canvas.drawing.line([*corners, corners[0]], outline, width, joint="curve")

    def box(
        self, u: float, v: float, width: float, height: float, colour: Colour, glow: bool = False
    ) -> None:
        """Fill a rectangle whose lower left corner is (u, v)."""
        points = [(u, v), (u + width, v), (u + width, v + height), (u, v + height)]
        self.polygon(points, colour, glow)

    def ellipse(
        self, u: float, v: float, ru: float, rv: float, colour: Colour, glow: bool = False
    ) -> None:
        """Fill an ellipse about (u, v)."""
        (x0, y0), (x1, y1) = self.at(u - ru, v - rv), self.at(u + ru, v + rv)
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        outline = self.seen(scaled(colour, 0.45)) if self.ink else None
        width = self._pixels(self.ink) if self.ink else 0
        self.canvas.drawing.ellipse(corners, self.seen(colour, glow), outline, width)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line through the points; `width` in the object's heights, a third of a pixel
        of the picture at least."""
        corners = [self.at(u, v) for u, v in points]
        self.canvas.drawing.line(
            corners, self.seen(colour), self._pixels(width * self.height), joint="curve"
        )


def whole(colour: Colour) -> tuple[int, int, int]:
    """Return a colour in whole numbers, as Pillow takes it."""
    r, g, b = (round(value) for value in colour)
    return r, g, b
