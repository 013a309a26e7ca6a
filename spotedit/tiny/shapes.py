"""Draw the tiny editor's objects, antialiased: six shapes, eight colours, three textures."""

import math
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
TEXTURES = ("plain", "striped", "dotted")
SIZES = {"small": 0.13, "medium": 0.17, "large": 0.22}  # radius as a share of the shorter side
COLOURS = {
    "red": (222, 38, 38),
    "green": (42, 168, 58),
    "blue": (36, 72, 222),
    "yellow": (244, 214, 36),
    "cyan": (44, 204, 214),
    "purple": (146, 44, 176),
    "white": (240, 240, 240),
    "black": (26, 26, 30),
}
_STRIPE_PERIOD = 0.5  # as a share of the radius
_DOT_PERIOD = 0.55  # as a share of the radius


@dataclass(frozen=True)
class Item:
    """One object with its centre (y, x) and its radius in pixels."""

    shape: str
    colour: str
    texture: str
    centre: tuple[float, float]
    radius: float

    @property
    def name(self) -> str:
        """The name that instructions use, such as ``red circle``."""
        return f"{self.colour} {self.shape}"

    @property
    def full_name(self) -> str:
        """The name with the texture unless it is plain, such as ``striped red circle``."""
        return self.name if self.texture == "plain" else f"{self.texture} {self.name}"


def _polygon(shape: str) -> np.ndarray:
    """Return the corners (y, x) as [n, 2] of a polygonal shape of about unit radius."""
    if shape == "square":
        return np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * 0.9
    if shape == "diamond":
        return np.array([[-1.2, 0], [0, 1.0], [1.2, 0], [0, -1.0]])
    if shape == "triangle":
        return np.array([[-1.1, 0], [0.9, 1.15], [0.9, -1.15]])
    if shape == "star":
        angle = np.arange(10) * math.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 1.25, 0.58)
        return np.stack([-radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    if shape == "cross":
        a, b = 0.4, 1.1
        return np.array(
            [[-b, -a], [-b, a], [-a, a], [-a, b], [a, b], [a, a],
             [b, a], [b, -a], [a, -a], [a, -b], [-a, -b], [-a, -a]]
        )  # fmt: skip
    raise ValueError(f"unknown shape {shape!r}; expected one of {SHAPES}")


def _signed_distance(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the distances of the points to the unit shape's outline, negative inside it."""
    if shape == "circle":
        return np.hypot(y, x) - 1.05
    corners = _polygon(shape)
    nearest = np.full(np.broadcast(y, x).shape, np.inf)
    inside = np.zeros(nearest.shape, dtype=bool)
    for (ay, ax), (by, bx) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ey, ex = by - ay, bx - ax
        py, px = y - ay, x - ax
        along = np.clip((py * ey + px * ex) / (ey * ey + ex * ex), 0, 1)
        nearest = np.minimum(nearest, np.hypot(py - along * ey, px - along * ex))
        if ey != 0:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest)


def _paint(item: Item, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the object's colour [h, w, 3] at unit coordinates, with light from the top left."""
    base = np.array(COLOURS[item.colour], dtype=np.float64)
    second = base + 90 if base.mean() < 60 else base * 0.5
    if item.texture == "striped":
        mix = 0.5 + 0.5 * np.clip(4 * np.sin(2 * math.pi * y / _STRIPE_PERIOD), -1, 1)
        mix = np.broadcast_to(mix, np.broadcast(y, x).shape)
    elif item.texture == "dotted":
        cell_y, cell_x = ((c / _DOT_PERIOD + 0.5) % 1 - 0.5 for c in (y, x))
        mix = np.clip(4 * (0.33 - np.hypot(cell_y, cell_x)) + 0.5, 0, 1)
    else:
        mix = np.zeros(np.broadcast(y, x).shape)
    colour = base + mix[..., None] * (second - base)
    light = 1.0 - 0.16 * np.clip(y + x, -1.5, 1.5)
    return np.clip(colour * light[..., None], 0, 255)


def draw(picture: np.ndarray, item: Item) -> None:
    """Composite `item` onto `picture` (float [H, W, 3], 0..255) in place."""
    height, width = picture.shape[:2]
    (cy, cx), reach = item.centre, 1.3 * item.radius + 2
    top, bottom = max(0, int(cy - reach)), min(height, int(cy + reach) + 1)
    left, right = max(0, int(cx - reach)), min(width, int(cx + reach) + 1)
    y = (np.arange(top, bottom)[:, None] + 0.5 - cy) / item.radius
    x = (np.arange(left, right)[None, :] + 0.5 - cx) / item.radius
    alpha = np.clip(0.5 - _signed_distance(item.shape, y, x) * item.radius, 0, 1)[..., None]
    window = picture[top:bottom, left:right]
    window += alpha * (_paint(item, y, x) - window)
