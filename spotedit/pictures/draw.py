"""Draw what a report says: the regenerated region, the scores and the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("dense", "full", "spot", "skip")
COLOURS = {"dense": "#8a8f98", "full": "#d9822b", "spot": "#2b6cb0", "skip": "#3a9d6e"}
_TINT = np.array([43, 108, 176], dtype=np.float32)  # blue, in RGB
_TINT_OPACITY = 0.38
_HEAT_OPACITY = 0.9  # opacity of the highest score


def tint(image: Image.Image, region: np.ndarray) -> Image.Image:
    """Return the image in RGB, with a region in blue.

    Args:
        region: bool [rows, cols], stretched over the image.
    """
    mask, outline = _stretch(region, image)
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    pixels[mask] += _TINT_OPACITY * (_TINT - pixels[mask])
    pixels[outline] = _TINT
    return Image.fromarray(pixels.round().astype(np.uint8))


def heat(
    image: Image.Image, scores: np.ndarray, region: np.ndarray, limit: float = 0.0
) -> Image.Image:
    """Return the image in grey, coloured by scores, with the outline of a region in white.

    Args:
        scores: [rows, cols], at least 0, stretched over the image. The full colour stands for the
            highest score or for twice `limit`, whichever is more.
        region: bool [rows, cols].
        limit: the score up to which a token counts as unchanged.
    """
    from matplotlib import colormaps

    full_colour = max(float(scores.max()), 2 * limit) or 1.0
    share = scores / full_colour
    colours = colormaps["inferno"](share, alpha=_HEAT_OPACITY * share, bytes=True)
    layer = Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGBA")
    pixels = np.array(Image.alpha_composite(grey, layer).convert("RGB"))
    _, outline = _stretch(region, image)
    pixels[outline] = 255
    return Image.fromarray(pixels)


def _stretch(region: np.ndarray, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the region at the size of the image, and its outline: bool [H, W] each."""
    mask = np.asarray(
        Image.fromarray(region).resize(image.size, Image.Resampling.NEAREST), dtype=bool
    )
    token_side = min(image.height // region.shape[0], image.width // region.shape[1])
    line_width = max(1, min(min(image.size) // 150, token_side // 3))
    return mask, mask & ~_erode(mask, line_width)


def _erode(mask: np.ndarray, margin: int) -> np.ndarray:
    """Return the mask [H, W] without the pixels that are closer than `margin` to a False one.

    Only the pixels at distance 0 and `margin` are compared. That is enough here, because every run
    of True or False pixels is at least `margin` long.
    """
    height, width = mask.shape
    padded = np.pad(mask, margin, mode="edge")
    offsets = (0, margin, 2 * margin)
    rows = np.logical_and.reduce([padded[start : start + height] for start in offsets])
    return np.logical_and.reduce([rows[:, start : start + width] for start in offsets])


def plot_steps(steps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a figure with bars of the tokens computed (%) and the time taken (ms) at every step.

    Args:
        steps: see `EditReport.steps`.
        path: file to write; the suffix chooses the format.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # pyplot would change the caller's backend

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    tokens, times = figure.subplots(2, 1, sharex=True)
    percentages = [100 * step["active"] / step["total"] for step in steps]
    milliseconds = [1000 * step["seconds"] for step in steps]
    _draw_bars(tokens, steps, percentages, "tokens computed, %")
    _draw_bars(times, steps, milliseconds, "time, ms")
    tokens.set_ylim(0, 105)
    times.set_xlabel("step")
    if steps:
        tokens.legend(
            ncols=len(KINDS),
            fontsize="small",
            frameon=False,
            loc="lower right",
            bbox_to_anchor=(1, 1),
        )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_bars(
    axes: "Axes", steps: Sequence[Mapping[str, Any]], heights: Sequence[float], label: str
) -> None:
    """Draw a bar for each step, in the colour of its kind."""
    for kind in KINDS:
        bars = {
            step["index"]: height
            for step, height in zip(steps, heights, strict=True)
            if step["kind"] == kind
        }
        if bars:
            axes.bar(list(bars), list(bars.values()), color=COLOURS[kind], label=kind)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
