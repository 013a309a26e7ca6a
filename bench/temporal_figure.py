"""Draw the figure of `bench.temporal`: the loss in the edited region against the work saved."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from . import plots
from .rows import Row

COLOURS = {"dense": "black", "spot": "tab:blue", "tea": "tab:orange", "seer": "tab:green"}
EDIT, WORK = "edited region, difference to dense", "work, dense / this"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel for each number of steps at which a method skips steps.

    If no method skips steps, there is a panel for every number of steps.
    """
    compared = [row.parameters for row in rows if row.name == EDIT]
    skipping = [parameters for parameters in compared if parameters["method"] != "spot"]
    steps = sorted({int(parameters["steps"]) for parameters in skipping or compared})
    num_columns = min(3, len(steps))
    num_rows = -(-len(steps) // num_columns)
    figure = Figure(figsize=(4.4 * num_columns, 3.5 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, num_steps in zip(panels, steps, strict=False):
        shown = [row for row in rows if row.parameters["steps"] == num_steps]
        losses = {row.parameters["method"]: row for row in shown if row.name == EDIT}
        work = {row.parameters["method"]: row.value for row in shown if row.name == WORK}
        lines: dict[tuple[str, bool], list[tuple[float, float]]] = {}
        for method, row in losses.items():
            name = str(method)
            spot, text = name.startswith("spot"), name.endswith("text")
            kind = name.removeprefix("spot+").split()[0]
            x, colour = work[method], COLOURS[kind]
            axes.errorbar(
                x, row.value, [[row.value - (row.low or 0)], [(row.high or 0) - row.value]],
                color=colour, elinewidth=0.6, alpha=0.9,
                marker="x" if text else "o", markerfacecolor=colour if spot else "white",
            )  # fmt: skip
            if not text:
                lines.setdefault((kind, spot), []).append((x, row.value))
        for (kind, spot), points in lines.items():
            label = kind if kind == "spot" or not spot else f"spot+{kind}"
            style = "-" if spot else "--"
            axes.plot(*zip(*sorted(points), strict=True), style, color=COLOURS[kind], label=label)
        axes.axhline(0, color="grey", lw=0.6)
        axes.set(title=f"{num_steps} steps", xlabel="less work than dense, x")
        axes.set_ylabel("edited region, dB to dense")
        axes.legend(fontsize="x-small", frameon=False, title="cross: text cached")
    for axes in panels[len(steps) :]:
        axes.remove()
    plots.save(figure, path, dpi=130)
