"""The figure of `bench.quality`: what every variant costs in quality, against the work it saves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spotedit.images import atomic_write

from .measures import MEASURES
from .report import DIFFERENCE, WORK
from .results import Results
from .variants import DEFAULT, MAIN, SWEEPS

_ACROSS = 4
_INCHES = (3.9, 3.0)
_HIGHLIGHT, _OTHER = "#d9822b", "#2b6cb0"
_EDIT = MEASURES["edit_db"].name + DIFFERENCE


def draw(main: Results, sweeps: Sequence[Results], path: Path) -> None:
    """Write a PNG with a panel for each run; a file there is replaced."""
    panels = [(main, "default, rivals, known bad", (*MAIN,))]
    for results in sweeps:
        sweep = results.name.removeprefix("quality-")
        panels.append((results, sweep, (DEFAULT, *SWEEPS[sweep])))
    down = -(-len(panels) // _ACROSS)
    figure = Figure(figsize=(_ACROSS * _INCHES[0], down * _INCHES[1]), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).ravel()
    for cell, (results, title, methods) in zip(axes, panels, strict=False):
        _panel(cell, results, methods)
        cell.set_title(f"{title} ({results.environment['scenes']} scenes)", fontsize=9)
    for cell in axes[len(panels) :]:
        cell.set_axis_off()
    figure.supxlabel("work saved, share of the dense edit's", fontsize=10)
    figure.supylabel("edited region against the truth, difference to dense, dB", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _panel(axes: Any, results: Results, methods: Sequence[str]) -> None:
    """Points with their 95% intervals; a number at each, and the names beside them."""
    axes.axhline(0, color="0.6", lw=0.8)
    lows, number = [], 0
    for method in methods:
        edit, work = results.row(_EDIT, method), results.row(WORK, method)
        if edit is None or work is None:
            continue
        number += 1
        x, y = work["value"], edit["value"]
        colour = _HIGHLIGHT if method == DEFAULT else _OTHER
        axes.plot([x, x], [edit["low"], edit["high"]], color=colour, lw=1, alpha=0.6)
        axes.plot(x, y, "o", color=colour, ms=4, label=f"{number} {method}")
        axes.annotate(
            str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour
        )
        lows.append(edit["low"])
    axes.set_xlim(-0.05, 1)
    if lows and min(lows) < -2:  # the known-bad ones would hide the others
        axes.set_yscale("symlog", linthresh=0.5)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=5.5, loc="best", handletextpad=0.2, borderpad=0.3, framealpha=0.6)
