"""The figure of `bench.judges`: recall against the size of the region, a panel an editor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from spotedit.judge.judges import JUDGES
from spotedit.options.config import THRESHOLDS
from spotedit.pictures.images import atomic_write

from .judges import MULTIPLES, select

if TYPE_CHECKING:
    from .judges import Course, Place

_INCHES = (3.4, 2.8)
_COLOURS = dict(zip(JUDGES, ("#d9822b", "#2b6cb0", "#2f855a", "#805ad5"), strict=True))


def draw(found: Mapping["Place", Sequence["Course"]], path: Path) -> None:
    """Write a PNG; a file there is replaced. Dots mark the judges' own thresholds."""
    editors, splits = (list(dict.fromkeys(place[i] for place in found)) for i in (0, 1))
    size = len(editors) * _INCHES[0], len(splits) * _INCHES[1]
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(splits), len(editors), squeeze=False, sharey=True)
    for (editor, split), courses in found.items():
        cell = axes[splits.index(split)][editors.index(editor)]
        for judge, colour in _COLOURS.items():
            points = [select(courses, judge, m * THRESHOLDS[judge]) for m in MULTIPLES]
            curve = [(point.size, 1 - point.recalls.mean()) for point in points]
            cell.plot(*zip(*curve, strict=True), color=colour, lw=1.2, label=judge)
            own = select(courses, judge, THRESHOLDS[judge])
            cell.plot(own.size, 1 - own.recalls.mean(), "o", color=colour, ms=5)
        cell.set_title(f"{editor}, {split} scenes", fontsize=9)
        cell.set_yscale("symlog", linthresh=1e-3)
        cell.set_ylim(-1e-4, 1)
        cell.set_xlim(0, 3)
        cell.axvline(1, color="0.7", lw=0.8)
        cell.tick_params(labelsize=7)
        cell.spines[["top", "right"]].set_visible(False)
    for line in axes:
        line[0].set_ylabel("changed tokens that are missed", fontsize=8)
    for cell in axes[-1]:
        cell.set_xlabel("computed / needed tokens", fontsize=8)
    axes[0][0].legend(fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)
