"""The figure of `bench.quality`: what every variant costs in quality, and the work it saves."""

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

_ACROSS = 3
_INCHES = (4.6, 2.7)
_HIGHLIGHT, _OTHER = "#d9822b", "#2b6cb0"
_EDIT = MEASURES["edit_db"].name + DIFFERENCE
_LINEAR = 0.5  # dB; beyond, the scale is logarithmic: bad edits would hide the others


def draw(main: Results, sweeps: Sequence[Results], path: Path) -> None:
    """Write a PNG: all variants by the work they save, then a panel a run; replaces a file."""
    runs = [(main, "default, rivals, known bad", tuple(MAIN))]
    for results in sweeps:
        sweep = results.name.removeprefix("quality-")
        runs.append((results, sweep, (DEFAULT, *SWEEPS[sweep])))
    down = -(-(len(runs) + 1) // _ACROSS)
    figure = Figure(figsize=(_ACROSS * _INCHES[0], down * _INCHES[1]), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).ravel()
    colours = colormaps["tab20"].colors
    for (results, title, methods), colour in zip(runs, colours, strict=False):
        _scatter(axes[0], results, methods, title, colour)
    axes[0].axhline(0, color="0.6", lw=0.8)
    axes[0].set_yscale("symlog", linthresh=_LINEAR)
    axes[0].set_xlabel("work saved, share of dense", fontsize=8)
    axes[0].set_ylabel("difference to dense, dB", fontsize=8)
    axes[0].tick_params(labelsize=7)
    axes[0].legend(fontsize=5, ncols=2, loc="lower left", framealpha=0.6)
    for cell, (results, title, methods) in zip(axes[1:], runs, strict=False):
        _panel(cell, results, methods)
        cell.set_title(f"{title} ({results.environment['scenes']} scenes)", fontsize=9)
    for cell in axes[len(runs) + 1 :]:
        cell.set_axis_off()
    figure.suptitle(
        "Edited region against the truth: mean paired difference to dense in dB, 95% interval; "
        "beside the name the work saved",
        fontsize=10,
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _measured(results: Results, methods: Sequence[str]) -> list[tuple[str, dict, dict]]:
    found = [(m, results.row(_EDIT, m), results.row(WORK, m)) for m in methods]
    return [(method, edit, work) for method, edit, work in found if edit and work]


def _scatter(
    axes: Any, results: Results, methods: Sequence[str], label: str, colour: tuple[float, ...]
) -> None:
    found = _measured(results, methods)
    x, y = ([line[i]["value"] for line in found] for i in (2, 1))
    ends = [[abs(line[1]["value"] - line[1][end]) for line in found] for end in ("low", "high")]
    axes.errorbar(x, y, ends, fmt="o", ms=3, lw=0.7, color=colour, label=label, alpha=0.8)


def _panel(axes: Any, results: Results, methods: Sequence[str]) -> None:
    """A line for each method, the first one on top."""
    found = _measured(results, methods)
    for place, (method, edit, _) in enumerate(found):
        colour = _HIGHLIGHT if method == DEFAULT else _OTHER
        axes.plot([edit["low"], edit["high"]], [place, place], color=colour, lw=1.5, alpha=0.6)
        axes.plot(edit["value"], place, "o", color=colour, ms=4)
    axes.axvline(0, color="0.6", lw=0.8)
    names = [f"{method}  {work['value']:.0%}" for method, _, work in found]
    axes.set_yticks(range(len(found)), names, fontsize=6.5)
    axes.invert_yaxis()
    if found and min(edit["low"] for _, edit, _ in found) < -2:
        axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.tick_params(axis="x", labelsize=7)
