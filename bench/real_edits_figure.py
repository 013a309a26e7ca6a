"""The figure of `bench.real_edits`: maps on the token grid, which show nothing of the pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from spotedit.images import atomic_write

from .convergence_figure import outline

if TYPE_CHECKING:
    from .real_edits import Judged

_INCHES = 2.2
_MOST = {"perceptual score": 0.5, "difference of the pixels": 60.0}  # of the colour scales


def draw(judged: Mapping[str, "Judged"], path: Path) -> None:
    """Write a PNG with a column for each edit; a file there is replaced.

    The outline is of the active tokens.
    """
    figure = Figure(figsize=(len(judged) * _INCHES + 0.6, 2 * _INCHES + 0.3), layout="constrained")
    lines = figure.subplots(2, len(judged), squeeze=False)
    for column, (editor, found) in enumerate(judged.items()):
        lines[0][column].set_title(editor, fontsize=8)
        maps = (found.scores["perceptual"], found.difference)
        for line, values, (name, most) in zip(lines, maps, _MOST.items(), strict=True):
            cell = line[column]
            heat = cell.imshow(values, cmap="magma", vmin=0, vmax=most)
            outline(cell, found.active)
            cell.set_axis_off()
            if column == len(judged) - 1:
                bar = figure.colorbar(heat, ax=line, fraction=0.05, pad=0.01, extend="max")
                bar.set_label(name, fontsize=8)
                bar.ax.tick_params(labelsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
