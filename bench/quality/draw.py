"""Draw the figure of `bench.quality`: what each variant costs in quality and saves in work."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from spotedit.pictures.images import atomic_write

from .measures import MEASURES
from .report import DIFFERENCE, WORK
from .results import Results
from .variants import DEFAULT, MAIN, SWEEPS

_NUM_COLUMNS = 3
_PANEL_INCHES = (4.6, 2.7)
_HIGHLIGHT, _OTHER = "#d9822b", "#2b6cb0"
_EDIT = MEASURES["edit_db"].name + DIFFERENCE
# The scale is logarithmic beyond this many dB; otherwise the worst edits would hide the others.
_LINEAR_DB = 0.5


def draw(main: Results, sweeps: Sequence[Results], path: Path) -> None:
    """Write a PNG with one panel for all variants by the work they save, and one for each run.

    An existing file is replaced.
    """
    runs = [(main, "default, rivals, known bad", tuple(MAIN))]
    for results in sweeps:
        sweep = results.name.removeprefix("quality-")
        runs.append((results, sweep, (DEFAULT, *SWEEPS[sweep])))
    num_rows = math.ceil((1 + len(runs)) / _NUM_COLUMNS)
    size = _NUM_COLUMNS * _PANEL_INCHES[0], num_rows * _PANEL_INCHES[1]
    figure = Figure(figsize=size, layout="constrained")
    overview, *panels = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False).ravel()
    colours = colormaps["tab20"].colors
    for (results, title, methods), colour in zip(runs, colours, strict=False):
        _scatter(overview, results, methods, title, colour)
    overview.axhline(0, color="0.6", lw=0.8)
    overview.set_yscale("symlog", linthresh=_LINEAR_DB)
    overview.set_xlabel("work saved, share of dense", fontsize=8)
    overview.set_ylabel("difference to dense, dB", fontsize=8)
    overview.tick_params(labelsize=7)
    overview.legend(fontsize=5, ncols=2, loc="lower left", framealpha=0.6)
    for panel, (results, title, methods) in zip(panels, runs, strict=False):
        _panel(panel, results, methods)
        panel.set_title(f"{title} ({results.environment['scenes']} scenes)", fontsize=9)
    for unused in panels[len(runs) :]:
        unused.set_axis_off()
    figure.suptitle(
        "Edited region against the truth: mean paired difference to dense in dB with its 95% "
        "interval; the work saved stands beside each name",
        fontsize=10,
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _measured(results: Results, methods: Sequence[str]) -> list[tuple[str, dict, dict]]:
    """Return (method, row of the difference to dense, row of the work) of all measured methods."""
    rows = [(m, results.row(_EDIT, m), results.row(WORK, m)) for m in methods]
    return [(method, edit, work) for method, edit, work in rows if edit and work]


def _scatter(
    axes: Any, results: Results, methods: Sequence[str], label: str, colour: tuple[float, ...]
) -> None:
    """Plot the difference to dense over the work saved, with error bars."""
    measured = _measured(results, methods)
    x = [work["value"] for _, _, work in measured]
    y = [edit["value"] for _, edit, _ in measured]
    below = [abs(edit["value"] - edit["low"]) for _, edit, _ in measured]
    above = [abs(edit["value"] - edit["high"]) for _, edit, _ in measured]
    axes.errorbar(x, y, [below, above], fmt="o", ms=3, lw=0.7, color=colour, label=label, alpha=0.8)


def _panel(axes: Any, results: Results, methods: Sequence[str]) -> None:
    """Plot one line for each method, with the first method on top."""
    measured = _measured(results, methods)
    for y, (method, edit, _) in enumerate(measured):
        colour = _HIGHLIGHT if method == DEFAULT else _OTHER
        axes.plot([edit["low"], edit["high"]], [y, y], color=colour, lw=1.5, alpha=0.6)
        axes.plot(edit["value"], y, "o", color=colour, ms=4)
    axes.axvline(0, color="0.6", lw=0.8)
    names = [f"{method}  {work['value']:.0%}" for method, _, work in measured]
    axes.set_yticks(range(len(measured)), names, fontsize=6.5)
    axes.invert_yaxis()
    if measured and min(edit["low"] for _, edit, _ in measured) < -2:
        axes.set_xscale("symlog", linthresh=_LINEAR_DB)
    axes.tick_params(axis="x", labelsize=7)
