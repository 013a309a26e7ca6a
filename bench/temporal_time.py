"""Time the methods of `bench.temporal`: whole edits with 1024 noise and 1024 condition tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import spotedit

from . import edits
from .rows import Row
from .speed import rectangle
from .timing import alternate, call_seconds

SIZE, RATIO = 256, 0.25  # pixels, share of active tokens
# least ratio of seconds: dense to `spot` at that number of steps, and others to `spot+`
FEW_STEPS, FEW_FASTER, FASTER = 8, 1.2, 1.15
NOTES = (
    "Whole edits with the tiny editor at 256 px. All methods take turns in one run (A B ... B A). "
    "Values are medians with [20th, 80th percentile]; ratios are taken to the other method's edit "
    "in the same pass. A mask makes a centred rectangle of a quarter of the tokens active. The "
    "judge runs as by default, but with threshold 0 it calls every token changed.",
)
_WARM_UP_STEPS = 4


def measure(
    pipe: Any,
    plan: Mapping[int, Sequence[str]],
    methods: Mapping[str, Mapping[str, Any]],
    repeats: int,
) -> list[Row]:
    """Time every method at every number of steps of `plan`, and return the rows."""
    scene = edits.heldout(edits.FIRST_SEED, SIZE)
    side = SIZE // (2 * pipe.vae_scale_factor)
    mask = rectangle((side, side), RATIO)

    def seconds(steps: int, method: str) -> float:
        with spotedit.enable(pipe, threshold=0.0, **methods[method]) as handle:
            handle.set_mask(mask)
            arguments = edits.arguments(scene, edits.FIRST_SEED, steps)
            return call_seconds(lambda: pipe(**arguments), pipe.device)[1]

    rows: list[Row] = []
    for steps, names in plan.items():
        times: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            seconds(min(steps, _WARM_UP_STEPS), name)
        for name in tqdm(alternate(names, repeats), desc=f"{steps} steps", unit="edit"):
            times[name].append(seconds(steps, name))
        rows += result_rows(steps, times)
    return rows


def result_rows(steps: int, times: Mapping[str, Sequence[float]]) -> list[Row]:
    """Make rows from the seconds of every method in every pass."""
    rows = []
    for name, seconds in times.items():
        parameters = {"steps": steps, "method": name}
        rows.append(Row.median("whole edit", seconds, "s", parameters=parameters))
        without_spot = name.removeprefix("spot+").removesuffix(" text")
        goals = {"dense": FEW_FASTER if (steps, name) == (FEW_STEPS, "spot") else None}
        if without_spot != name and without_spot in times:
            goals[without_spot] = FASTER if name in ("spot+tea", "spot+seer") else None
        for other, goal in goals.items():
            if other != name:
                ratios = [theirs / ours for theirs, ours in zip(times[other], seconds, strict=True)]
                title = f"whole edit, {other} / this"
                rows.append(Row.median(title, ratios, "x", at_least=goal, parameters=parameters))
    return rows
