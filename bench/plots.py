"""Draw the kernels' rows: a roofline, and attention by its number of query rows.

The figures of other benches share `outline` and `save`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spotedit.pictures.images import atomic_write

from .rows import Row

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:gray")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def save(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG. A file at `path` is replaced."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def outline(axes: Any, region: np.ndarray) -> None:
    """Draw a white line around the True tokens of `region`, bool [rows, cols]."""
    padded = np.pad(region, 1)
    above, left = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    lines = [([x, x + 1], [y, y]) for y, x in np.argwhere(above)]
    lines += [([x, x], [y, y + 1]) for y, x in np.argwhere(left)]
    for xs, ys in lines:
        axes.plot(np.subtract(xs, 0.5), np.subtract(ys, 0.5), color="white", linewidth=1.2)


def _timed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with a speed, of the first shape that has any."""
    timed = [row for row in rows if row.parameters.get("TFLOP/s")]
    return [row for row in timed if row.parameters["shape"] == timed[0].parameters["shape"]]


def _ceiling(rows: Sequence[Row], name: str) -> float:
    return next(row.value for row in rows if row.name == name)


def _implementations(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row.parameters["impl"]) for row in rows))


def roofline(rows: Sequence[Row], path: Path) -> None:
    """Draw the speed reached against arithmetic intensity, under the measured ceilings."""
    matmul, copy = _ceiling(rows, "matmul"), _ceiling(rows, "copy")
    timed = _timed(rows)
    ops = list(dict.fromkeys(row.name for row in timed))
    impls = _implementations(timed)
    colours = {op: COLOURS[i % len(COLOURS)] for i, op in enumerate(ops)}
    markers = {impl: MARKERS[i % len(MARKERS)] for i, impl in enumerate(impls)}
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    intensities = []
    for row in timed:
        impl, speed = str(row.parameters["impl"]), float(row.parameters["TFLOP/s"])
        intensity = speed / float(row.parameters["TB/s"])
        intensities.append(intensity)
        axes.plot(
            intensity, speed, linestyle="", markersize=6, alpha=0.8,
            marker=markers[impl], color=colours[row.name],
            markerfacecolor=None if impl == "triton" else "none",
        )  # fmt: skip
    ridge = matmul / copy
    left, right = min([ridge, *intensities]) / 2, max([ridge, *intensities]) * 2
    (ceiling,) = axes.plot([left, ridge, right], [left * copy, matmul, matmul], color="black", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="FLOP / byte that must move", ylabel="TFLOP/s")
    axes.set_title(f"Operations of a step, shape {timed[0].parameters['shape']}" if timed else "")
    op_handles = [Line2D([], [], color=colour, lw=4) for colour in colours.values()]
    impl_handles = [
        Line2D([], [], color="black", linestyle="", marker=marker,
               markerfacecolor="black" if impl == "triton" else "none")
        for impl, marker in markers.items()
    ]  # fmt: skip
    limits = f"ceilings: {matmul:.3g} TFLOP/s, {copy:.3g} TB/s"
    figure.legend(
        [ceiling, *op_handles, *impl_handles], [limits, *ops, *impls],
        loc="outside right upper", fontsize=8, frameon=False,
    )  # fmt: skip
    save(figure, path, dpi=120)


def sweep(rows: Sequence[Row], path: Path) -> None:
    """Draw attention's speed by the number of query rows, with the 20th and 80th percentiles."""
    timed = [row for row in _timed(rows) if row.name == "gathered_attention"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, impl in enumerate(_implementations(timed)):
        line = [row for row in timed if row.parameters["impl"] == impl]
        line.sort(key=lambda row: row.parameters["M"])
        m = [row.parameters["M"] for row in line]
        speed = np.array([float(row.parameters["TFLOP/s"]) for row in line])
        low, middle, high = (
            np.array([getattr(row, name) for row in line], dtype=float)
            for name in ("low", "value", "high")
        )
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(
            m, speed, label=impl, marker=MARKERS[i % len(MARKERS)], markersize=5, color=colour,
            lw=2.5 if impl in ("triton", "auto") else 1, linestyle="--" if impl == "auto" else "-",
        )  # fmt: skip
        # the rows hold times, and speed is inversely proportional to time
        slow, fast = speed * middle / high, speed * middle / low
        axes.fill_between(m, slow, fast, color=colour, alpha=0.15, lw=0)
    matmul = _ceiling(rows, "matmul")
    axes.axhline(matmul, color="black", lw=1, linestyle=":", label="matrix product")
    axes.set(xlabel="query rows M", ylabel="TFLOP/s", ylim=(0, None))
    if timed:
        at = timed[0].parameters
        axes.set_title(f"Attention over {at['S']} keys, shape {at['shape']}")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path, dpi=120)
