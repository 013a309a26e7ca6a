"""The seconds of `bench.temporal`: whole edits at 1024 noise and 1024 condition tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import spotedit

from . import edits
from .rows import Row
from .speed import rectangle
from .timing import alternate, call_seconds

SIZE, RATIO = 256, 0.25  # pixels, active tokens
FEW_STEPS, FEW_FASTER, FASTER = 8, 1.2, 1.15
NOTES = (
    "Whole edits with the tiny editor at 256 px, all methods alternated in one run (A B ... B A); "
    "medians [20th, 80th percentile] of the ratios to the edit of the other method in the same "
    "pass. The active tokens are a centred rectangle of a quarter of them; the judge runs as it "
    "does by default (threshold 0, so that the mask decides).",
)
_WARM_UP_STEPS = 4


def measure(
    pipe: Any,
    plan: Mapping[int, Sequence[str]],
    methods: Mapping[str, Mapping[str, Any]],
    repeats: int,
) -> list[Row]:
    """Rows of every method at every number of steps."""
    scene = edits.heldout(edits.FIRST_SEED, SIZE)
    side = SIZE // (2 * pipe.vae_scale_factor)
    mask = rectangle((side, side), RATIO)

    def seconds(steps: int, method: str) -> float:
        with spotedit.enable(pipe, threshold=0.0, **methods[method]) as handle:
            handle.set_mask(mask)
            given = edits.arguments(scene, edits.FIRST_SEED, steps)
            return call_seconds(lambda: pipe(**given), pipe.device)[1]

    found: list[Row] = []
    for steps, names in plan.items():
        taken: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            seconds(min(steps, _WARM_UP_STEPS), name)
        for name in tqdm(alternate(names, repeats), desc=f"{steps} steps", unit="edit"):
            taken[name].append(seconds(steps, name))
        found += report(steps, taken)
    return found


def report(steps: int, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    """Rows from the seconds of every method, pass by pass."""
    found = []
    for name, values in taken.items():
        where = {"steps": steps, "method": name}
        found.append(Row.median("whole edit", values, "s", parameters=where))
        alone = name.removeprefix("spot+").removesuffix(" text")
        others = {"dense": FEW_FASTER if (steps, name) == (FEW_STEPS, "spot") else None}
        if alone != name and alone in taken:
            others[alone] = FASTER if name in ("spot+tea", "spot+seer") else None
        for other, target in others.items():
            if other != name:
                ratios = [a / b for a, b in zip(taken[other], values, strict=True)]
                title = f"whole edit, {other} / this"
                found.append(Row.median(title, ratios, "x", at_least=target, parameters=where))
    return found
