"""Define the modes that `bench.pipeline` alternates, and make the rows of their times."""

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
    "Edits of the real pipeline at real shapes, with random weights and without text encoders. All "
    "modes take turns, there and back (A B C C B A). Values are medians with [20th, 80th "
    "percentile]. A step is the transformer's forward; a whole edit is the pipeline's call, VAE "
    "included, with the number of steps that its row names.",
    f"`{EAGER}` is the stock pipeline, and `{COMPILED}` the same with compiled blocks. `{UNFUSED}` "
    "has our schedule and gathers the same rows, but in a spot step it indexes, blends and "
    "concatenates keys and values, rotates all keys in fp32, and attends with SDPA. "
    f"`{CONDITION}` is ours with every noise token active. `{SPOT}` is ours without, and "
    f"`{SPOT_COMPILED}` with compiled blocks. `{SPOT_GRAPH}` is ours with the spot step replayed "
    "from a captured graph.",
    f"The active tokens are a centred rectangle, given by a mask. Only `{JUDGED}` scores tokens: "
    "the default judge runs beside the mask, with threshold 0, so that the mask decides.",
    "S/M is the ideal ratio of a dense to a spot step; its share is the ratio reached / (S/M). "
    "`first step at a new M` is the first spot step of an edit with a number of rows that this "
    "mode has not run before; the later spot steps of the same edits stand beside it.",
)
KINDS = {  # the mode of `speed.edit` for each
    EAGER: "dense", COMPILED: "dense", UNFUSED: "mask", CONDITION: "mask", SPOT: "mask",
    SPOT_COMPILED: "mask", SPOT_GRAPH: "mask", JUDGED: "mask + judge",
}  # fmt: skip
ON_COMPILED = (COMPILED, SPOT_COMPILED)  # these run on the pipeline with compiled blocks
BASELINES = {
    UNFUSED: (COMPILED, EAGER),
    CONDITION: (COMPILED, EAGER),
    SPOT: (COMPILED, EAGER, UNFUSED, CONDITION),
    SPOT_COMPILED: (COMPILED, EAGER, SPOT),
    SPOT_GRAPH: (COMPILED, EAGER, SPOT),
    JUDGED: (COMPILED, EAGER, UNFUSED, CONDITION),
}
GRAPH_OPTION = "cuda_graph"  # the field of a later `SpotEditConfig` that SPOT_GRAPH will set
# targets on an H100 against the compiled baseline, by the requested ratio of active tokens
SHARE_TARGETS = {0.4: 0.85, 0.2: 0.75, 0.1: 0.65, 0.05: 0.6}  # share of S/M
WHOLE_EDIT_TARGETS = {  # number of steps -> targets with the judge
    28: {0.4: 2.25, 0.2: 2.7, 0.1: 3.0},
    50: {0.4: 2.45, 0.2: 3.1, 0.1: 3.4},
}
Case = tuple[str, float]  # (mode, ratio of active tokens)


@dataclass
class Measured(Samples):
    """The samples of a mode.

    Attributes:
        peaks: the most bytes that were allocated on the device, in each edit.
    """

    peaks: list[int] = field(default_factory=list)


def cases(
    ratios: Sequence[float], judged_ratios: Sequence[float], unfused_ratios: Sequence[float]
) -> list[Case]:
    """List the cases that take turns. Those that compile come last, for their risk and time.

    Of `ratios`, 1 stands for the condition cache alone; the others are run in the spot modes.
    """
    spot_ratios = [ratio for ratio in ratios if ratio != 1]
    listed = [(EAGER, 1.0), *((SPOT, ratio) for ratio in spot_ratios)]
    listed += [(JUDGED, ratio) for ratio in judged_ratios]
    listed += [(UNFUSED, ratio) for ratio in unfused_ratios]
    if 1 in ratios:
        listed.append((CONDITION, 1.0))
    listed += [(COMPILED, 1.0), *((SPOT_COMPILED, ratio) for ratio in spot_ratios)]
    if captures_graphs():
        listed += [(SPOT_GRAPH, ratio) for ratio in spot_ratios]
    return listed


def captures_graphs() -> bool:
    """Say whether this spotedit can replay a spot step from a captured graph."""
    return GRAPH_OPTION in (f.name for f in fields(spotedit.SpotEditConfig))


def result_rows(all_samples: Mapping[Case, Measured], targets: bool) -> Iterator[Row]:
    """Make the rows; `targets` says whether there are targets for the shape and the device."""
    for (mode, ratio), samples in all_samples.items():
        if not samples.edits:
            continue
        shape: dict[str, Any] = {"mode": mode}
        if mode in BASELINES:
            shape["r"] = samples.active_share
        for kind, seconds in samples.forwards.items():
            yield Row.milliseconds(f"transformer, {kind} step", seconds, shape)
        for num_steps, seconds in samples.edits.items():
            at = shape | {"steps": num_steps}
            yield Row.median("whole edit", seconds, "s", parameters=at)
        if samples.peaks:
            yield Row("peak memory", max(samples.peaks) / 1e9, "GB", parameters=shape)
        if mode not in BASELINES:
            continue
        name = "one judgement" if mode == JUDGED else "listing the given tokens"
        yield Row.milliseconds(name, samples.judgements, shape)
        yield Row("cache", samples.cache_bytes / 1e9, "GB", parameters=shape)
        yield Row("S/M", samples.ideal, "x", parameters=shape)
        for name in BASELINES[mode]:
            baseline = all_samples.get((name, ratio if name in (UNFUSED, SPOT) else 1.0))
            if baseline is not None and baseline.edits:
                goals = _goals(mode, ratio) if targets and name == COMPILED else {}
                yield from _compare(samples, baseline, shape | {"baseline": name}, goals)


def _goals(mode: str, ratio: float) -> dict[str | int, float | None]:
    """Return the target of the "share" of S/M, and those of whole edits by number of steps."""
    goals: dict[str | int, float | None] = {}
    if mode in (SPOT, SPOT_COMPILED, SPOT_GRAPH, JUDGED):
        goals["share"] = SHARE_TARGETS.get(ratio)
    if mode == JUDGED:
        goals |= {steps: goal.get(ratio) for steps, goal in WHOLE_EDIT_TARGETS.items()}
    return goals


def _compare(
    samples: Samples,
    baseline: Samples,
    shape: dict[str, Any],
    goals: Mapping[str | int, float | None],
) -> Iterator[Row]:
    """Make rows of the ratios of the baseline's times to those of `samples`."""
    baseline_steps = baseline.forwards.get("dense", baseline.forwards.get("spot"))
    spot_steps = samples.forwards.get("spot")
    if baseline_steps and spot_steps:
        speedup = float(np.median(baseline_steps) / np.median(spot_steps))
        yield Row("step, baseline / this", speedup, "x", parameters=shape)
        if "dense" in baseline.forwards:
            share, goal = speedup / samples.ideal, goals.get("share")
            yield Row("share of S/M", share, "share", at_least=goal, parameters=shape)
    for num_steps, seconds in samples.edits.items():
        # not strict: the run may have ended between the two edits of a pair
        pairs = zip(baseline.edits.get(num_steps, ()), seconds, strict=False)
        ratios = [theirs / ours for theirs, ours in pairs]
        if ratios:
            name, goal = "whole edit, baseline / this", goals.get(num_steps)
            at = shape | {"steps": num_steps}
            yield Row.median(name, ratios, "x", at_least=goal, parameters=at)
