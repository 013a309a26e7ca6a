"""Pictures of the kernels' rows: a roofline, and attention by the number of query rows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .rows import Row

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:gray")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def _timed(rows: Sequence[Row]) -> list[Row]:
    """Times of the first shape that has any, with a speed."""
    found = [row for row in rows if row.parameters.get("TFLOP/s")]
    return [row for row in found if row.parameters["shape"] == found[0].parameters["shape"]]


def _peak(rows: Sequence[Row], name: str) -> float:
    return next(row.value for row in rows if row.name == name)


def roofline(rows: Sequence[Row], path: Path) -> None:
    """Arithmetic intensity against the speed reached, under the measured ceilings."""
    matmul, copy = _peak(rows, "matmul"), _peak(rows, "copy")
    timed = _timed(rows)
    ops = list(dict.fromkeys(row.name for row in timed))
    impls = list(dict.fromkeys(str(row.parameters["impl"]) for row in timed))
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    points = []
    for row in timed:
        speed = float(row.parameters["TFLOP/s"])
        x = speed / float(row.parameters["TB/s"])
        points.append(x)
        impl = str(row.parameters["impl"])
        axes.plot(
            x, speed, linestyle="", markersize=6, alpha=0.8,
            marker=MARKERS[impls.index(impl) % len(MARKERS)],
            color=COLOURS[ops.index(row.name) % len(COLOURS)],
            markerfacecolor=None if impl == "triton" else "none",
        )  # fmt: skip
    ridge = matmul / copy
    ends = (min([ridge, *points]) / 2, max([ridge, *points]) * 2)
    (ceiling,) = axes.plot(
        [ends[0], ridge, ends[1]], [ends[0] * copy, matmul, matmul], color="black", lw=1
    )
    axes.set(xscale="log", yscale="log", xlabel="FLOP / byte that must move", ylabel="TFLOP/s")
    axes.set_title(f"Operations of a step, shape {timed[0].parameters['shape']}" if timed else "")
    handles = [plt.Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=4) for i in range(len(ops))]
    handles += [
        plt.Line2D([], [], color="black", linestyle="", marker=MARKERS[i % len(MARKERS)],
                   markerfacecolor="black" if impl == "triton" else "none")
        for i, impl in enumerate(impls)
    ]  # fmt: skip
    limits = f"ceilings: {matmul:.3g} TFLOP/s, {copy:.3g} TB/s"
    figure.legend(
        [ceiling, *handles],
        [limits, *ops, *impls],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def sweep(rows: Sequence[Row], path: Path) -> None:
    """Attention's speed by the number of query rows, with the 20th and 80th percentiles."""
    timed = [row for row in _timed(rows) if row.name == "gathered_attention"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    impls = list(dict.fromkeys(str(row.parameters["impl"]) for row in timed))
    for i, impl in enumerate(impls):
        ours = sorted(
            (row for row in timed if row.parameters["impl"] == impl),
            key=lambda row: row.parameters["M"],
        )
        m = [row.parameters["M"] for row in ours]
        speed = [float(row.parameters["TFLOP/s"]) for row in ours]
        axes.plot(
            m, speed, label=impl, marker=MARKERS[i % len(MARKERS)], markersize=5,
            color=COLOURS[i % len(COLOURS)], lw=2.5 if impl in ("triton", "auto") else 1,
            linestyle="--" if impl == "auto" else "-",
        )  # fmt: skip
        ends = [
            [s * r.value / end for s, r, end in zip(speed, ours, bound, strict=True)]
            for bound in ([r.high for r in ours], [r.low for r in ours])
        ]
        axes.fill_between(m, *ends, color=COLOURS[i % len(COLOURS)], alpha=0.15, lw=0)
    axes.axhline(_peak(rows, "matmul"), color="black", lw=1, linestyle=":", label="matrix product")
    axes.set(xlabel="query rows M", ylabel="TFLOP/s", ylim=(0, None))
    if timed:
        at = timed[0].parameters
        axes.set_title(f"Attention over {at['S']} keys, shape {at['shape']}")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
