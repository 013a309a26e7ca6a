"""Draw the figure of `bench.real_edits`: maps on the token grid, which do not show the pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from . import plots

_INCHES = 1.5  # side of a map
_NUM_COLUMNS = 7
_LIMITS = {"score": 5.0, "difference of the pixels": 60.0}  # tops of the colour scales


class Maps(NamedTuple):
    """The pictures and maps that are drawn for an edit. Each map is [rows, cols]."""

    score: np.ndarray
    difference: np.ndarray
    active: np.ndarray


def draw(edits: Mapping[str, Maps], path: Path) -> None:
    """Write a PNG with two maps of each edit, one above the other, and the active tokens' outline.

    `edits` are by the name of the editor.
    """
    num_blocks = -(-len(edits) // _NUM_COLUMNS)
    size = _NUM_COLUMNS * _INCHES + 0.6, num_blocks * (2 * _INCHES + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(2 * num_blocks, _NUM_COLUMNS, squeeze=False)
    for cell in cells.ravel():
        cell.set_axis_off()
    for i, (editor, maps) in enumerate(edits.items()):
        block, column = divmod(i, _NUM_COLUMNS)
        lines = cells[2 * block : 2 * block + 2]
        lines[0][column].set_title(editor, fontsize=8)
        pairs = zip(lines, (maps.score, maps.difference), _LIMITS.items(), strict=True)
        for line, values, (name, limit) in pairs:
            heat = line[column].imshow(values, cmap="magma", vmin=0, vmax=limit)
            plots.outline(line[column], maps.active)
            if column == _NUM_COLUMNS - 1:
                bar = figure.colorbar(heat, ax=line, fraction=0.02, pad=0.01, extend="max")
                bar.set_label(name, fontsize=8)
                bar.ax.tick_params(labelsize=7)
    plots.save(figure, path, dpi=110)
