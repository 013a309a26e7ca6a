"""The figure of `bench.temporal`: what is lost in the edited region for how much less work."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spotedit.pictures.images import atomic_write

from .rows import Row

COLOURS = {"dense": "black", "spot": "tab:blue", "tea": "tab:orange", "seer": "tab:green"}
EDIT, WORK = "edited region, difference to dense", "work, dense / this"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel for each number of steps that steps were left out of (of all, where
    none were); a file there is replaced."""
    compared = [row.parameters for row in rows if row.name == EDIT]
    more = [at for at in compared if at["method"] != "spot"]
    steps = sorted({int(at["steps"]) for at in more or compared})
    across = min(3, len(steps))
    down = -(-len(steps) // across)
    figure = Figure(figsize=(4.4 * across, 3.5 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, count in zip(panels, steps, strict=False):
        ours = [row for row in rows if row.parameters["steps"] == count]
        losses = {row.parameters["method"]: row for row in ours if row.name == EDIT}
        work = {row.parameters["method"]: row.value for row in ours if row.name == WORK}
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
        axes.set(title=f"{count} steps", xlabel="less work than dense, x")
        axes.set_ylabel("edited region, dB to dense")
        axes.legend(fontsize="x-small", frameon=False, title="cross: text cached")
    for axes in panels[len(steps) :]:
        axes.remove()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
