"""Define the modes that `bench.pipeline` alternates, and make rows of their times."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

import spotedit

from .rows import Row
from .speed import Samples

EAGER, COMPILED, UNFUSED = "dense eager", "dense compiled", "eager-unfused"
CONDITION, SPOT, JUDGED = "condition-cached only", "spot", "spot + judge"
SPOT_COMPILED, SPOT_GRAPH = "spot, compiled blocks", "spot, captured graph"
NOTES = (
    "Real pipeline and shapes, random weights, no text encoders; all modes in turn, there and back "
    "(A B C C B A); medians [20th, 80th percentile]. A step is the transformer's forward; a whole "
    "edit is the pipeline's call, VAE included, with the number of steps that its row names.",
    f"`{EAGER}`: stock. `{COMPILED}`: stock, its blocks compiled. `{UNFUSED}`: our schedule and "
    "gathering, but in a spot step keys and values are indexed, blended and concatenated, all keys "
    f"are rotated in fp32, and SDPA attends. `{CONDITION}`: ours with every noise token active. "
    f"`{SPOT}`: ours, its blocks not compiled. `{SPOT_COMPILED}`: ours on the pipeline whose "
    f"blocks are compiled. `{SPOT_GRAPH}`: ours, a spot step replayed from a captured graph.",
    f"The active tokens are given, a centred rectangle. Only `{JUDGED}` scores tokens: the "
    "default judge runs beside the mask, with threshold 0, so that the mask decides.",
    "S/M is the ideal ratio of a dense to a spot step; its share is the ratio reached / (S/M). "
    "`first step at a new M`: the first spot step of an edit with a number of rows that this mode "
    "has not run before, beside the later spot steps of the same edits.",
)
KINDS = {  # modes of `speed.edit`
    EAGER: "dense", COMPILED: "dense", UNFUSED: "mask", CONDITION: "mask", SPOT: "mask",
    SPOT_COMPILED: "mask", SPOT_GRAPH: "mask", JUDGED: "mask + judge",
}  # fmt: skip
ON_COMPILED = (COMPILED, SPOT_COMPILED)  # run on the pipeline whose blocks are compiled
BASELINES = {
    UNFUSED: (COMPILED, EAGER),
    CONDITION: (COMPILED, EAGER),
    SPOT: (COMPILED, EAGER, UNFUSED, CONDITION),
    SPOT_COMPILED: (COMPILED, EAGER, SPOT),
    SPOT_GRAPH: (COMPILED, EAGER, SPOT),
    JUDGED: (COMPILED, EAGER, UNFUSED, CONDITION),
}
GRAPH_OPTION = "cuda_graph"  # field of `SpotEditConfig` that SPOT_GRAPH sets, once there is one
# On an H100 against the compiled baseline, by the ratio of active tokens asked for
SHARE_TARGETS = {0.4: 0.85, 0.2: 0.75, 0.1: 0.65, 0.05: 0.6}  # of S/M
WHOLE_EDIT_TARGETS = {  # judge included; by steps
    28: {0.4: 2.25, 0.2: 2.7, 0.1: 3.0},
    50: {0.4: 2.45, 0.2: 3.1, 0.1: 3.4},
}
Case = tuple[str, float]  # mode, ratio of active tokens


@dataclass
class Measured(Samples):
    """The samples of a mode, with the most bytes allocated on the device in every edit."""

    peaks: list[int] = field(default_factory=list)


def cases(
    ratios: Sequence[float], judged: Sequence[float], unfused_at: Sequence[float]
) -> list[Case]:
    """List what is alternated. What compiles comes after all that does not, for its risk and time.

    `ratios` without 1 are run in the spot modes; 1 stands for the condition cache alone.
    """
    spots = [ratio for ratio in ratios if ratio != 1]
    found = [(EAGER, 1.0), *((SPOT, ratio) for ratio in spots)]
    found += [(JUDGED, ratio) for ratio in judged]
    found += [(UNFUSED, ratio) for ratio in unfused_at]
    found += [(CONDITION, 1.0)] if 1 in ratios else []
    found += [(COMPILED, 1.0), *((SPOT_COMPILED, ratio) for ratio in spots)]
    if captures_graphs():
        found += [(SPOT_GRAPH, ratio) for ratio in spots]
    return found


def captures_graphs() -> bool:
    """Say whether this spotedit can replay a spot step from a captured graph."""
    return GRAPH_OPTION in (f.name for f in fields(spotedit.SpotEditConfig))


def report(samples: Mapping[Case, Measured], targets: bool) -> Iterator[Row]:
    """Make the rows; `targets` says whether shape and device are the targets' own."""
    for (mode, ratio), taken in samples.items():
        if not taken.edits:
            continue
        shape: dict[str, Any] = {"mode": mode}
        if mode in BASELINES:
            shape |= {"r": f"{taken.active / taken.noise:.1%}"}
        for kind, seconds in taken.forwards.items():
            yield milliseconds(f"transformer, {kind} step", seconds, shape)
        for steps, seconds in taken.edits.items():
            yield Row.median("whole edit", seconds, "s", parameters=shape | {"steps": steps})
        if taken.peaks:
            yield Row("peak memory", max(taken.peaks) / 1e9, "GB", parameters=shape)
        if mode not in BASELINES:
            continue
        name = "one judgement" if mode == JUDGED else "listing the given tokens"
        yield milliseconds(name, taken.judgements, shape)
        yield Row("cache", taken.cache_bytes / 1e9, "GB", parameters=shape)
        yield Row("S/M", _ideal(taken), "x", parameters=shape)
        for baseline in BASELINES[mode]:
            other = samples.get((baseline, ratio if baseline in (UNFUSED, SPOT) else 1.0))
            if other is not None and other.edits:
                goals = _goals(mode, ratio) if targets and baseline == COMPILED else {}
                yield from _compare(taken, other, shape | {"baseline": baseline}, goals)


def milliseconds(name: str, seconds: Sequence[float], shape: Mapping[str, Any]) -> Row:
    """Make a row of the median of `seconds`."""
    return Row.median(name, [1000 * value for value in seconds], "ms", parameters=shape)


def _ideal(taken: Samples) -> float:
    """Return S/M, the ideal ratio of a dense to a spot step."""
    return taken.sequence / (taken.sequence - 2 * taken.noise + taken.active)


def _goals(mode: str, ratio: float) -> dict[str | int, float | None]:
    """Return the targets of the share of S/M, and of whole edits by their number of steps."""
    goals: dict[str | int, float | None] = {}
    if mode in (SPOT, SPOT_COMPILED, SPOT_GRAPH, JUDGED):
        goals["share"] = SHARE_TARGETS.get(ratio)
    if mode == JUDGED:
        goals |= {steps: goal.get(ratio) for steps, goal in WHOLE_EDIT_TARGETS.items()}
    return goals


def _compare(
    taken: Samples, other: Samples, shape: dict[str, Any], goals: Mapping[str | int, float | None]
) -> Iterator[Row]:
    slow = other.forwards.get("dense", other.forwards.get("spot"))
    reached = float(np.median(slow) / np.median(taken.forwards["spot"]))
    yield Row("step, baseline / this", reached, "x", parameters=shape)
    if "dense" in other.forwards:
        share, goal = reached / _ideal(taken), goals.get("share")
        yield Row("share of S/M", share, "share", at_least=goal, parameters=shape)
    for steps, seconds in taken.edits.items():
        # the run may have ended between the two edits of a pair
        ratios = [a / b for a, b in zip(other.edits.get(steps, ()), seconds, strict=False)]
        at, goal = shape | {"steps": steps}, goals.get(steps)
        if ratios:
            name = "whole edit, baseline / this"
            yield Row.median(name, ratios, "x", at_least=goal, parameters=at)
