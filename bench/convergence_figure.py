"""The figure of `bench.convergence`: predicted clean images by step, and when tokens converge."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from spotedit.pictures.images import atomic_write

from . import edits

if TYPE_CHECKING:
    from .convergence import Course

_SHARES = (0.04, 0.08, 0.16, 0.32, 0.6)  # of the steps, beside the last
_INCHES = 1.35
_TEXT = 0.95  # width of the text column, in pictures


def draw(pipe: Any, courses: Sequence["Course"], path: Path) -> None:
    """Write a PNG with a row for each edit; a file there is replaced.

    The heat map is of `Course.converged`; its outline is of `Course.edited`.
    """
    steps = len(courses[0].estimates)
    latest = max(int(course.converged.max()) for course in courses)
    counts = sorted({max(1, round(share * steps)) for share in _SHARES} | {steps})
    titles = ["source", *(f"step {n}" for n in counts), "settled at step\n(outline: the truth)"]
    figure = Figure(
        figsize=((len(titles) + _TEXT + 0.35) * _INCHES, len(courses) * _INCHES + 0.35),
        layout="constrained",
    )
    axes = figure.subplots(
        len(courses), len(titles) + 1, squeeze=False, width_ratios=(_TEXT, *[1] * len(titles))
    )
    for line, course in zip(axes, courses, strict=True):
        size = course.scene.mask.shape
        line[0].text(0, 0.5, textwrap.fill(course.scene.instruction, 15), va="center", fontsize=8)
        decoded = (edits.decode(pipe, course.estimates[n - 1], size) for n in counts)
        for cell, picture in zip(line[1:-1], (course.scene.source, *decoded), strict=True):
            cell.imshow(picture)
        heat = line[-1].imshow(course.converged, cmap="viridis", vmin=1, vmax=latest)
        outline(line[-1], course.edited)
        for cell in line:
            cell.set_axis_off()
    for cell, title in zip(axes[0][1:], titles, strict=True):
        cell.set_title(title, fontsize=8)
    bar = figure.colorbar(heat, ax=axes[:, -1], fraction=0.1, pad=0.04, aspect=60)
    bar.ax.tick_params(labelsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def outline(axes: Any, region: np.ndarray) -> None:
    """White line around the True tokens."""
    padded = np.pad(region, 1)
    levels = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    lines = [([x, x + 1], [y, y]) for y, x in np.argwhere(levels[0])]
    lines += [([x, x], [y, y + 1]) for y, x in np.argwhere(levels[1])]
    for xs, ys in lines:
        axes.plot(np.subtract(xs, 0.5), np.subtract(ys, 0.5), color="white", linewidth=1.2)
