"""Whole edits of FLUX.1-Kontext's real shapes, with random weights: ``python -m bench.pipeline``.

Random weights measure speed, not quality.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import spotedit

from . import environment, identity, rows
from .kontext import SHAPES, Shape, arguments, build, compiled
from .rows import Row
from .speed import Samples, edit, rectangle
from .unfused import unfused

EAGER, COMPILED, UNFUSED = "dense eager", "dense compiled", "eager-unfused"
CONDITION, SPOT, JUDGED = "condition-cached only", "spot", "spot + judge"
NOTES = (
    "Real pipeline and shapes, random weights, no text encoders; all modes in turn, there and back "
    "(A B C C B A); medians [20th, 80th percentile]. A step is the transformer's forward; a whole "
    "edit is the pipeline's call, VAE included, with the number of steps that its row names.",
    f"`{EAGER}`: stock. `{COMPILED}`: stock, its blocks compiled. `{UNFUSED}`: our schedule and "
    "gathering, but in a spot step keys and values are indexed, blended and concatenated, all keys "
    f"are rotated in fp32, and SDPA attends. `{CONDITION}`: ours with every noise token active.",
    f"The active tokens are given, a centred rectangle. Only `{JUDGED}` scores tokens: the "
    "perceptual judge runs as it does by default, with threshold 0, so that the mask decides.",
    "S/M is the ideal ratio of a dense to a spot step; its share is the ratio reached / (S/M).",
)
KINDS = {  # modes of `speed.edit`
    EAGER: "dense", COMPILED: "dense", UNFUSED: "mask", CONDITION: "mask", SPOT: "mask",
    JUDGED: "mask + judge",
}  # fmt: skip
BASELINES = {
    UNFUSED: (COMPILED, EAGER),
    CONDITION: (COMPILED, EAGER),
    SPOT: (COMPILED, EAGER, UNFUSED, CONDITION),
    JUDGED: (COMPILED, EAGER, UNFUSED, CONDITION),
}
# on an H100 against the compiled baseline, by the ratio of active tokens asked for
SHARE_TARGETS = {0.4: 0.85, 0.2: 0.75, 0.1: 0.65, 0.05: 0.6}  # of S/M
WHOLE_EDIT_TARGETS = {  # judge included; by steps
    28: {0.4: 2.25, 0.2: 2.7, 0.1: 3.0},
    50: {0.4: 2.45, 0.2: 3.1, 0.1: 3.4},
}
_WARM_UP_STEPS = 3
Case = tuple[str, float]  # mode, ratio of active tokens


@dataclass
class Measured(Samples):
    """With the most bytes allocated on the device, of every edit."""

    peaks: list[int] = field(default_factory=list)


def cases(ratios: Sequence[float], judged: Sequence[float]) -> list[Case]:
    """What is alternated."""
    found = [(EAGER, 1.0), (COMPILED, 1.0)]
    for ratio in ratios:
        found += [(CONDITION, ratio)] if ratio == 1 else [(UNFUSED, ratio), (SPOT, ratio)]
    return found + [(JUDGED, ratio) for ratio in judged]


def run(pipes: Mapping[str, Any], shape: Shape, case: Case, steps: int, into: Measured) -> None:
    """Time one edit; `pipes` holds the two dense modes', and ours run on the eager one."""
    mode, ratio = case
    pipe = pipes.get(mode, pipes[EAGER])
    side = shape.pixels // (2 * pipe.vae_scale_factor)
    given = arguments(shape, pipe.device, pipe.dtype, steps)
    cuda = pipe.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with unfused() if mode == UNFUSED else nullcontext():
        edit(pipe, given, KINDS[mode], rectangle((side, side), ratio), into)
    if cuda:
        into.peaks.append(torch.cuda.max_memory_allocated())


def report(samples: Mapping[Case, Measured], targets: bool) -> Iterator[Row]:
    """The rows; `targets`: whether shape and device are the targets' own."""
    for (mode, ratio), taken in samples.items():
        shape: dict[str, Any] = {"mode": mode}
        if mode in BASELINES:
            shape |= {"r": f"{taken.active / taken.noise:.1%}"}
        for kind, seconds in taken.forwards.items():
            yield _milliseconds(f"transformer, {kind} step", seconds, shape)
        for steps, seconds in taken.edits.items():
            yield Row.median("whole edit", seconds, "s", parameters=shape | {"steps": steps})
        if taken.peaks:
            yield Row("peak memory", max(taken.peaks) / 1e9, "GB", parameters=shape)
        if mode not in BASELINES:
            continue
        name = "one judgement" if mode == JUDGED else "listing the given tokens"
        yield _milliseconds(name, taken.judgements, shape)
        yield Row("cache", taken.cache_bytes / 1e9, "GB", parameters=shape)
        yield Row("S/M", _ideal(taken), "x", parameters=shape)
        for baseline in BASELINES[mode]:
            other = samples.get((baseline, ratio if baseline == UNFUSED else 1.0))
            if other is not None:
                goals = _goals(mode, ratio) if targets and baseline == COMPILED else {}
                yield from _compare(taken, other, shape | {"baseline": baseline}, goals)


def _milliseconds(name: str, seconds: Sequence[float], shape: Mapping[str, Any]) -> Row:
    return Row.median(name, [1000 * value for value in seconds], "ms", parameters=shape)


def _ideal(taken: Samples) -> float:
    """S/M of a spot step."""
    return taken.sequence / (taken.sequence - 2 * taken.noise + taken.active)


def _goals(mode: str, ratio: float) -> dict[str | int, float | None]:
    """Of the share of S/M, and of the whole edit by its steps."""
    goals: dict[str | int, float | None] = {}
    if mode in (SPOT, JUDGED):
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
        ratios = [a / b for a, b in zip(other.edits[steps], seconds, strict=True)]
        at, goal = shape | {"steps": steps}, goals.get(steps)
        yield Row.median("whole edit, baseline / this", ratios, "x", at_least=goal, parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="kontext")
    parser.add_argument("--layers", type=int, nargs=2, metavar=("DUAL", "SINGLE"), help="fewer")
    parser.add_argument(
        "--ratio", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 1.0], help="active tokens"
    )
    parser.add_argument("--judge", type=float, nargs="*", default=[0.2], help="ratios, judged too")
    parser.add_argument("--steps", type=int, nargs="+", default=[28])
    parser.add_argument("--repeats", type=int, default=1, help="of A B C C B A")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    shape, dtype = SHAPES[args.size], getattr(torch, args.dtype)
    if args.layers:
        depth = dict(zip(("num_layers", "num_single_layers"), args.layers, strict=True))
        shape = replace(shape, transformer={**shape.transformer, **depth})
    machine = environment.describe(args.device)
    machine |= {"shape": str(shape), "dtype": args.dtype, "compiled with": args.backend}
    identity.check(args.device, dtype)
    pipe = build(shape, args.device, dtype)
    pipes = {EAGER: pipe, COMPILED: compiled(pipe, args.backend)}
    targets = args.size == "kontext" and not args.layers and "H100" in machine["device"]
    samples: dict[Case, Measured] = {}
    failed = []
    for case in tqdm(cases(args.ratio, args.judge), desc="warm up", unit="mode"):
        try:
            run(pipes, shape, case, _WARM_UP_STEPS, Measured())
        except Exception as error:  # a mode that fails must not cost the others' rows
            failed.append(f"{case[0]}, r = {case[1]:.0%}: {error!r}")
            spotedit.disable(pipe)  # it stays enabled where its call fails
        else:
            samples[case] = Measured()
    text = ""
    for steps in args.steps:
        for order in [list(samples), list(reversed(samples))] * args.repeats:
            for case in tqdm(order, desc=f"{steps} steps", unit="edit"):
                run(pipes, shape, case, steps, samples[case])
            text = rows.save("pipeline", list(report(samples, targets)), machine, NOTES, args.out)
    print(text)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
