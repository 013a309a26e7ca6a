"""Draw the comparison figure: a row for every picture, with its instruction beside it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..pictures.files import atomic_write

COLUMNS = ("source", "dense", "spot", "regenerated")
_INCHES = 2.2  # side of a square picture in the figure
_TEXT = 0.75  # width of the text column, in widths of a picture


def save_figure(
    path: Path,
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    columns: Sequence[str] = COLUMNS,
) -> None:
    """Write a PNG file with a row for every pair (text, pictures), one picture for each column.

    A file at `path` is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    ratio = max(pictures[0].height / pictures[0].width for _, pictures in rows)
    figure = Figure(
        figsize=((len(columns) + _TEXT) * _INCHES, len(rows) * _INCHES * ratio + 0.4),
        layout="constrained",
    )
    axes = figure.subplots(
        len(rows), len(columns) + 1, squeeze=False, width_ratios=(_TEXT, *[1] * len(columns))
    )
    for line, (text, pictures) in zip(axes, rows, strict=True):
        for cell in line:
            cell.set_axis_off()
        line[0].text(0, 0.5, textwrap.fill(text, 19), va="center", transform=line[0].transAxes)
        for cell, picture in zip(line[1:], pictures, strict=True):
            cell.imshow(picture, interpolation="antialiased")
    for cell, title in zip(axes[0][1:], columns, strict=True):
        cell.set_title(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
