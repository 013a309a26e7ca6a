"""Define the colours by word, and how light changes them."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0..255

COLOURS: dict[str, Colour] = {
    "red": (205, 48, 44),
    "orange": (236, 134, 38),
    "yellow": (244, 208, 62),
    "green": (66, 146, 66),
    "blue": (54, 104, 196),
    "purple": (132, 74, 168),
    "pink": (240, 150, 180),
    "brown": (128, 82, 50),
    "white": (238, 236, 230),
    "black": (48, 48, 56),
}
# Pairs that a weak judge cannot tell apart, though their words differ.
NEAR_COLOURS = (
    ("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("red", "brown"),
    ("purple", "pink"), ("green", "blue"), ("brown", "black"), ("white", "yellow"),
)  # fmt: skip
_LIGHTER, _WARMER = np.array([34.0, 34.0, 34.0]), np.array([20.0, 2.0, -24.0])


def shade(word: str, light: float, warmth: float) -> Colour:
    """Return a shade of a named colour. `light` and `warmth` are in 0..1; 0.5 changes nothing."""
    change = (light - 0.5) * _LIGHTER + (warmth - 0.5) * _WARMER
    return clip(np.add(COLOURS[word], change))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours; `share` (0..1) is that of the second."""
    r, g, b = ((1 - share) * x + share * y for x, y in zip(first, second, strict=True))
    return r, g, b


def scaled(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker (`factor` < 1) or lighter (> 1)."""
    return clip(np.multiply(colour, factor))


def clip(values: np.ndarray) -> Colour:
    """Return three numbers as a colour, limited to 0..255."""
    r, g, b = np.clip(values, 0.0, 255.0).tolist()
    return r, g, b


@dataclass(frozen=True)
class Light:
    """The light of an hour: it multiplies a colour by `gain`, then mixes in `share` of `haze`."""

    gain: Colour
    haze: Colour
    share: float

    def on(self, colour: Colour) -> Colour:
        """Return `colour` in this light."""
        return mix(clip(np.multiply(colour, self.gain)), self.haze, self.share)


LIGHTS = {
    "day": Light((1.0, 1.0, 1.0), (255.0, 255.0, 255.0), 0.0),
    "dawn": Light((1.0, 0.92, 0.88), (255.0, 196.0, 170.0), 0.12),
    "dusk": Light((0.95, 0.8, 0.78), (196.0, 104.0, 120.0), 0.16),
    "night": Light((0.42, 0.47, 0.64), (24.0, 32.0, 84.0), 0.22),
}
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])


def sepia(picture: np.ndarray) -> np.ndarray:
    """Return the uint8 [H, W, 3] picture in the brown tones of an old photograph."""
    toned = picture.astype(np.float32) @ (0.86 * _SEPIA.T).astype(np.float32)
    return np.rint(np.clip(toned, 0, 255)).astype(np.uint8)
