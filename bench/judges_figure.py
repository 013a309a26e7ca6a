"""Draw the figure of `bench.judges`: recall against the size of the region."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from . import plots

COLOURS = ("#d9822b", "#2b6cb0", "#2f855a", "#805ad5")
_INCHES = (3.4, 2.8)


class Curve(NamedTuple):
    """What a judge selects at several thresholds.

    Attributes:
        sizes: computed / needed tokens.
        missed: shares of the changed tokens that are not selected.
        default: index of the judge's default threshold.
    """

    sizes: list[float]
    missed: list[float]
    default: int


def draw(curves: Mapping[tuple[str, str], Mapping[str, Curve]], path: Path) -> None:
    """Write a PNG with a panel for each editor and split. Dots mark the default thresholds.

    `curves` are by editor and split, then by judge.
    """
    editors, splits = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    size = len(editors) * _INCHES[0], len(splits) * _INCHES[1]
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(splits), len(editors), squeeze=False, sharey=True)
    for (editor, split), judges in curves.items():
        cell = axes[splits.index(split)][editors.index(editor)]
        for (judge, curve), colour in zip(judges.items(), COLOURS, strict=True):
            cell.plot(curve.sizes, curve.missed, color=colour, lw=1.2, label=judge)
            dot = curve.sizes[curve.default], curve.missed[curve.default]
            cell.plot(*dot, "o", color=colour, ms=5)
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
    plots.save(figure, path, dpi=130)
