"""Draw what lies behind the objects: sky, sun or moon, hills, water and ground."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .palette import LIGHTS, Colour, Light, mix, scaled
from .pen import Canvas, rounded

GROUNDS = ("meadow", "sand", "field", "paving", "flowers")
BUSY_GROUNDS = GROUNDS[2:]
SEASONS = ("summer", "autumn", "winter")
_BASES: dict[str, Colour] = {
    "meadow": (126, 176, 92),
    "sand": (226, 200, 150),
    "field": (186, 168, 96),
    "paving": (178, 172, 168),
    "flowers": (112, 166, 88),
}
_IN_SEASON: dict[str, tuple[Colour, float]] = {
    "summer": ((0.0, 0.0, 0.0), 0.0),
    "autumn": ((196, 140, 70), 0.5),
    "winter": ((238, 243, 250), 0.86),
}


@dataclass(frozen=True)
class Hill:
    """A ridge across the picture.

    Attributes:
        top: mean y of the ridge, 0..1 downward.
        swell, ripple: amplitude, frequency and phase of its two waves.
        colour: on a summer's day.
        sharp: whether the waves have peaks instead of rounded tops.
    """

    top: float
    swell: tuple[float, float, float]
    ripple: tuple[float, float, float]
    colour: Colour
    sharp: bool = False

    def line(self, x: np.ndarray) -> np.ndarray:
        """Return y of the ridge at `x`."""
        y = np.full_like(x, self.top)
        for amplitude, frequency, phase in (self.swell, self.ripple):
            wave = np.sin(frequency * x + phase)
            y -= amplitude * (2 / math.pi * np.arcsin(wave) if self.sharp else wave)
        return y


@dataclass(frozen=True)
class Landscape:
    """Everything that is not an object. Colours are those of a summer's day.

    Attributes:
        hour: a key of `palette.LIGHTS`.
        season: one of `SEASONS`.
        sky: colours at the top and at the horizon.
        sun: x, y and radius of the sun or moon; None if it is hidden.
        hills: the ridges, from the farthest to the nearest.
        horizon: y at which the ground or the water begins, 0..1 downward.
        shore: y at which the ground begins; it equals `horizon` if there is no water.
        ground: one of `GROUNDS`; "field", "paving" and "flowers" are busy.
        soil, water: colours.
        scale, phase: scale and phase of the ground's pattern.
        shadow: strength of the objects' shadows, 0..1, and how far they lean to the right.
        ink: width of the outlines as a share of the picture's side; 0 for none.
    """

    hour: str
    season: str
    sky: tuple[Colour, Colour]
    sun: tuple[float, float, float] | None
    hills: tuple[Hill, ...]
    horizon: float
    shore: float
    ground: str
    soil: Colour
    water: Colour
    scale: float
    phase: float
    shadow: tuple[float, float]
    ink: float

    @property
    def light(self) -> Light:
        """The light of the hour."""
        return LIGHTS[self.hour]

    def in_season(self, colour: Colour) -> Colour:
        """Return the colour of something green in this season and light."""
        season, share = _IN_SEASON[self.season]
        return self.light.on(mix(colour, season, share))

    def draw_far(self, canvas: Canvas) -> None:
        """Draw everything behind the ground."""
        self._sky(canvas)
        for hill in self.hills:
            self._hill(canvas, hill)
        if self.shore > self.horizon:
            self._water(canvas)

    def _sky(self, canvas: Canvas) -> None:
        top, bottom = (np.array(self.light.on(colour)) for colour in self.sky)
        share = np.clip(canvas.pixel_centres() / max(self.horizon, 0.1), 0, 1)[:, None]
        column = np.rint(top * (1 - share) + bottom * share).astype(np.uint8)
        canvas.image.paste(Image.fromarray(column[:, None]).resize((canvas.side, canvas.side)))
        if self.sun is not None:
            x, y, radius = self.sun
            colour = (238, 238, 214) if self.hour == "night" else (255, 232, 140)
            _fill_circle(canvas, x, y, radius, colour)

    def _hill(self, canvas: Canvas, hill: Hill) -> None:
        x = np.linspace(-0.05, 1.05, 90)
        points = list(zip(x.tolist(), hill.line(x).tolist(), strict=True))
        canvas.polygon([*points, (1.05, 1.05), (-0.05, 1.05)], self.in_season(hill.colour))

    def _water(self, canvas: Canvas) -> None:
        colour = self.light.on(self.water)
        canvas.polygon(
            [(-0.05, self.horizon), (1.05, self.horizon), (1.05, 1.05), (-0.05, 1.05)], colour
        )
        paler = mix(colour, (255, 255, 255), 0.16)
        rows = 5
        for i in range(rows):
            y = self.horizon + (i + 0.5) / rows * (self.shore - self.horizon)
            for x in np.arange(-1, 2) * 0.5 + (self.phase + 0.37 * i) % 0.5:
                ends = [canvas.to_pixels(x, y), canvas.to_pixels(x + 0.16, y)]
                width = max(1, round(canvas.length(0.006)))
                canvas.drawing.line(ends, rounded(paler), width)

    def draw_near(self, canvas: Canvas) -> None:
        """Draw the ground, which hides the parts of reflections that reach beyond the shore."""
        colour = self.in_season(self.soil)
        edge = self.shore
        canvas.polygon([(-0.05, edge), (1.05, edge), (1.05, 1.05), (-0.05, 1.05)], colour)
        if self.ground == "field":
            self._furrows(canvas, edge, scaled(colour, 0.84))
        elif self.ground == "paving":
            self._slabs(canvas, edge, scaled(colour, 0.86))
        elif self.ground == "flowers":
            self._dots(canvas, edge, mix(colour, (252, 236, 170), 0.7))

    def _furrows(self, canvas: Canvas, edge: float, colour: Colour) -> None:
        step = 0.045 * self.scale
        x = np.linspace(-0.05, 1.05, 40)
        for i in range(int((1.1 - edge) / step)):
            y = edge + (i + 0.6) * step + 0.008 * np.sin(7 * x + self.phase)
            points = [
                canvas.to_pixels(*point) for point in zip(x.tolist(), y.tolist(), strict=True)
            ]
            width = max(1, round(canvas.length(0.3 * step)))
            canvas.drawing.line(points, rounded(colour), width)

    def _slabs(self, canvas: Canvas, edge: float, colour: Colour) -> None:
        step = 0.075 * self.scale
        for i in range(int((1.1 - edge) / step) + 1):
            low = edge + i * step
            for j in range(-1, int(1.1 / (2 * step)) + 2):
                x = (2 * j + i % 2) * step + self.phase % 1 * step
                corners = [(x, low), (x + step, low), (x + step, low + step), (x, low + step)]
                canvas.polygon(corners, colour)

    def _dots(self, canvas: Canvas, edge: float, colour: Colour) -> None:
        step, radius = 0.08 * self.scale, 0.011
        for i in range(int((1.1 - edge) / step) + 1):
            for j in range(-1, int(1.1 / step) + 2):
                x = (j + 0.5 * (i % 2) + self.phase % 1) * step
                y = edge + (i + 0.5) * step
                _fill_circle(canvas, x, y, radius, colour)


def _fill_circle(canvas: Canvas, x: float, y: float, radius: float, colour: Colour) -> None:
    left, top = canvas.to_pixels(x - radius, y - radius)
    right, bottom = canvas.to_pixels(x + radius, y + radius)
    canvas.drawing.ellipse([left, top, right, bottom], fill=rounded(colour))


def random_landscape(rng: np.random.Generator) -> Landscape:
    """Draw a landscape at random, with its own sky, ridges, water, ground and colours."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def varied(colour: Colour, spread: float = 14.0) -> Colour:
        shift = rng.uniform(-spread, spread, 3) + rng.uniform(-spread, spread)
        r, g, b = np.clip(np.add(colour, shift), 0, 255).tolist()
        return r, g, b

    hour = str(rng.choice(["day", "day", "day", "dawn", "dusk"]))
    horizon = between(0.46, 0.6)
    shore = horizon + (between(0.16, 0.24) if rng.random() < 0.45 else 0.0)
    sun = None
    if rng.random() < 0.5:
        sun = between(0.1, 0.9), between(0.1, 0.22), between(0.05, 0.075)
    hills = []
    num_hills = int(rng.integers(1, 4))
    tone = varied((104, 146, 112), 26)
    for i in range(num_hills):
        far = 1 - (i + 1) / num_hills
        hills.append(
            Hill(
                top=horizon - 0.04 - 0.11 * far,
                swell=(between(0.02, 0.06), between(3, 7), between(0, 6.3)),
                ripple=(between(0.005, 0.02), between(9, 15), between(0, 6.3)),
                colour=mix(varied(tone, 8), (176, 196, 216), 0.55 * far),
                sharp=bool(rng.random() < 0.3),
            )
        )  # fmt: skip
    ground = str(rng.choice(GROUNDS, p=[0.34, 0.2, 0.16, 0.14, 0.16]))
    return Landscape(
        hour=hour,
        season="summer",
        sky=(varied((112, 172, 226), 22), varied((218, 232, 240))),
        sun=sun,
        hills=tuple(hills),
        horizon=horizon,
        shore=shore,
        ground=ground,
        soil=varied(_BASES[ground], 18),
        water=varied((92, 150, 190)),
        scale=between(0.9, 1.3),
        phase=between(0, 6.3),
        shadow=(between(0.15, 0.45), between(-0.5, 0.5)),
        ink=0.007 if rng.random() < 0.25 else 0.0,
    )
