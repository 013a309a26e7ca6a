"""The figure of `bench.real_edits`: maps on the token grid, which show nothing of the pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from spotedit.pictures.images import atomic_write

from .convergence_figure import outline

if TYPE_CHECKING:
    from .real_edits import Judged

_INCHES = 1.5
_ACROSS = 7
_MOST = {"score": 5.0, "difference of the pixels": 60.0}  # of the colour scales


def draw(judged: Mapping[str, "Judged"], path: Path) -> None:
    """Write a PNG with two maps of each edit, one above the other; a file there is replaced.

    The outline is of the active tokens.
    """
    down = -(-len(judged) // _ACROSS)
    size = _ACROSS * _INCHES + 0.6, down * (2 * _INCHES + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    cells = figure.subplots(2 * down, _ACROSS, squeeze=False)
    for cell in cells.ravel():
        cell.set_axis_off()
    for place, (editor, found) in enumerate(judged.items()):
        block, column = divmod(place, _ACROSS)
        cells[2 * block][column].set_title(editor, fontsize=8)
        maps = (found.scores["calibrated"], found.difference)
        for line, (values, (name, most)) in enumerate(zip(maps, _MOST.items(), strict=True)):
            cell = cells[2 * block + line][column]
            heat = cell.imshow(values, cmap="magma", vmin=0, vmax=most)
            outline(cell, found.active)
            if column == _ACROSS - 1:
                bar = figure.colorbar(
                    heat, ax=cells[2 * block + line], fraction=0.02, pad=0.01, extend="max"
                )
                bar.set_label(name, fontsize=8)
                bar.ax.tick_params(labelsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
