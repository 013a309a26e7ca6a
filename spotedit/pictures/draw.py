"""Pictures of a report: the regenerated region, and the steps."""

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
_TINT = np.array([43, 108, 176], dtype=np.float32)
_STRENGTH = 0.38
_HEAT = 0.9  # opacity of the highest score


def tint(image: Image.Image, region: np.ndarray) -> Image.Image:
    """`image` in RGB, blue where `region` (bool [rows, cols], stretched over it) is True."""
    mask, outline = _stretched(region, image)
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    pixels[mask] += _STRENGTH * (_TINT - pixels[mask])
    pixels[outline] = _TINT
    return Image.fromarray(pixels.round().astype(np.uint8))


def heat(
    image: Image.Image, scores: np.ndarray, region: np.ndarray, limit: float = 0.0
) -> Image.Image:
    """`image` in grey, coloured by `scores`, with the outline of `region` in white.

    Args:
        scores: [rows, cols], at least 0, stretched over the image. The full colour stands for the
            highest score, or for twice `limit` where that is more.
        region: bool [rows, cols].
        limit: the score up to which a token counts as unchanged.
    """
    from matplotlib import colormaps

    share = scores / (max(float(scores.max()), 2 * limit) or 1.0)
    colours = colormaps["inferno"](share, alpha=_HEAT * share, bytes=True)
    layer = Image.fromarray(colours).resize(image.size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGBA")
    pixels = np.array(Image.alpha_composite(grey, layer).convert("RGB"))
    pixels[_stretched(region, image)[1]] = 255
    return Image.fromarray(pixels)


def _stretched(region: np.ndarray, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The region at the size of the image, and its outline: bool [H, W] each."""
    mask = np.asarray(
        Image.fromarray(region).resize(image.size, Image.Resampling.NEAREST), dtype=bool
    )
    token = min(image.height // region.shape[0], image.width // region.shape[1])
    width = max(1, min(min(image.size) // 150, token // 3))
    return mask, mask & ~_eroded(mask, width)


def _eroded(mask: np.ndarray, width: int) -> np.ndarray:
    """bool [H, W] without the pixels nearer than `width` to a False one.

    Only distances 0 and `width` are looked at: runs must be at least `width` pixels long.
    """
    height, breadth = mask.shape
    padded = np.pad(mask, width, mode="edge")
    offsets = (0, width, 2 * width)
    rows = np.logical_and.reduce([padded[o : o + height] for o in offsets])
    return np.logical_and.reduce([rows[:, o : o + breadth] for o in offsets])


def plot_steps(steps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bars of the tokens computed (%) and the time taken (ms) at each of `EditReport.steps`.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: the caller's backend stays

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    share, times = figure.subplots(2, 1, sharex=True)
    _bars(share, steps, [100 * s["active"] / s["total"] for s in steps], "tokens computed, %")
    _bars(times, steps, [1000 * s["seconds"] for s in steps], "time, ms")
    share.set_ylim(0, 105)
    times.set_xlabel("step")
    if steps:
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1)}
        share.legend(ncols=len(KINDS), fontsize="small", frameon=False, **place)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _bars(
    axes: "Axes", steps: Sequence[Mapping[str, Any]], heights: Sequence[float], label: str
) -> None:
    for kind in KINDS:
        bars = [(s["index"], h) for s, h in zip(steps, heights, strict=True) if s["kind"] == kind]
        if bars:
            axes.bar(*zip(*bars, strict=True), color=COLOURS[kind], label=kind)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
