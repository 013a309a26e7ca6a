"""Draw on an enlarged canvas, in the picture's coordinates or in those of one object."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from .palette import Colour, Light, mix, scaled

Point = tuple[float, float]


@dataclass
class Canvas:
    """A square picture that is drawn enlarged and scaled down at the end, for smooth edges.

    Points are (x, y) in 0..1, with y downward.

    Attributes:
        size: side of the finished picture in pixels.
        enlarged: pixels of the canvas per pixel of the picture.
        zoom: factor by which everything is enlarged about the centre.
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
        """The side of the canvas in pixels."""
        return self.size * self.enlarged

    def to_pixels(self, x: float, y: float) -> Point:
        """Return a point in pixels of the canvas."""
        zoom, side = self.zoom, self.side
        return ((x - 0.5) * zoom + 0.5) * side, ((y - 0.5) * zoom + 0.5) * side

    def length(self, share: float) -> float:
        """Return a length in pixels of the canvas; `share` is in sides of the picture."""
        return share * self.zoom * self.side

    def pixel_centres(self) -> np.ndarray:
        """Return the coordinates of the canvas pixels' centres along one side."""
        return ((np.arange(self.side) + 0.5) / self.side - 0.5) / self.zoom + 0.5

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self.drawing.polygon([self.to_pixels(x, y) for x, y in points], fill=rounded(colour))

    def darken(self, centre: Point, radii: Point, strength: float) -> None:
        """Darken what has been drawn so far by a soft elliptic shadow."""
        reach = 1.8  # number of radii at which the shadow ends
        left, top = self.to_pixels(centre[0] - reach * radii[0], centre[1] - reach * radii[1])
        right, bottom = self.to_pixels(centre[0] + reach * radii[0], centre[1] + reach * radii[1])
        x0, y0 = max(0, int(left)), max(0, int(top))
        x1, y1 = min(self.side, int(right) + 1), min(self.side, int(bottom) + 1)
        if x0 >= x1 or y0 >= y1:
            return
        centres = self.pixel_centres()
        x = (centres[x0:x1] - centre[0]) / radii[0]
        y = (centres[y0:y1] - centre[1]) / radii[1]
        squared_distance = x[None, :] ** 2 + y[:, None] ** 2
        light = 1 - strength * np.exp(-1.5 * squared_distance) * (squared_distance < reach**2)
        patch = np.asarray(self.image.crop((x0, y0, x1, y1)), dtype=np.float32)
        darker = np.rint(patch * light[..., None].astype(np.float32)).astype(np.uint8)
        self.image.paste(Image.fromarray(darker), (x0, y0))

    def picture(self) -> np.ndarray:
        """Return the finished picture, uint8 [size, size, 3]."""
        return np.asarray(self.image.reduce(self.enlarged))


@dataclass(frozen=True)
class Pen:
    """A pen for one object, in coordinates (u, v) in which the foot is (0, 0) and the top (0, 1).

    Lengths are in the object's heights.

    Attributes:
        canvas: where the pen draws.
        foot: the point on which the object stands, in picture coordinates.
        height: the object's height as a share of the picture's side.
        light: the light of the hour.
        flip: -1 mirrors left and right, 1 does not.
        upright: 1, or a negative factor for a reflection below the foot.
        tint, tinted: a colour that is mixed into all others, and its share; used for reflections.
        ink: width of the outlines as a share of the picture's side; 0 for none.
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

    def to_pixels(self, u: float, v: float) -> Point:
        """Return a point of the object in pixels of the canvas."""
        x = self.foot[0] + self.flip * u * self.height
        y = self.foot[1] - self.upright * v * self.height
        return self.canvas.to_pixels(x, y)

    def drawn_colour(self, colour: Colour, glow: bool = False) -> tuple[int, int, int]:
        """Return the colour in the hour's light, unless it glows, and with the tint."""
        lit = colour if glow else self.light.on(colour)
        return rounded(mix(lit, self.tint, self.tinted))

    def _pixel_width(self, width: float) -> int:
        return max(1, round(self.canvas.length(width)))

    def polygon(self, points: Sequence[Point], colour: Colour, glow: bool = False) -> None:
        """Fill a polygon, and outline it if the pen has ink."""
        corners = [self.to_pixels(u, v) for u, v in points]
        self.canvas.drawing.polygon(corners, fill=self.drawn_colour(colour, glow))
        if self.ink:
            outline = self.drawn_colour(scaled(colour, 0.45))
            width = self._pixel_width(self.ink)
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
        """Fill an ellipse with centre (u, v) and radii (ru, rv), and outline it with ink."""
        (x0, y0), (x1, y1) = self.to_pixels(u - ru, v - rv), self.to_pixels(u + ru, v + rv)
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        outline = self.drawn_colour(scaled(colour, 0.45)) if self.ink else None
        width = self._pixel_width(self.ink) if self.ink else 0
        self.canvas.drawing.ellipse(corners, self.drawn_colour(colour, glow), outline, width)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line through the points, at least one canvas pixel wide."""
        corners = [self.to_pixels(u, v) for u, v in points]
        pixel_width = self._pixel_width(width * self.height)
        self.canvas.drawing.line(corners, self.drawn_colour(colour), pixel_width, joint="curve")


def rounded(colour: Colour) -> tuple[int, int, int]:
    """Return a colour as integers for Pillow."""
    r, g, b = (round(value) for value in colour)
    return r, g, b
