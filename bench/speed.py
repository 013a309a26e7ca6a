"""Time whole edits and transformer steps, spot against dense: ``python -m bench.speed``."""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import spotedit

from . import edits, environment, rows
from .rows import Row
from .timing import DECODE, ENCODE, JUDGE, SELECT, TRANSFORMER, alternate, call_seconds, timed_parts

NO_SPOT_STEP = "no spot step"
NOTES = (
    "Spot edits and dense ones (the stock pipeline) of the tiny editor alternate in one run (A B C "
    "C B A). Values are medians with [20th, 80th percentile].",
    "Mode `default` is `spotedit.enable(pipe)` without a mask; `r` and `tokens` are means over the "
    "spot steps. In the other spot modes the active tokens are a centred rectangle. In `mask` that "
    'mask decides (`set_mask(mode="replace")`) and nothing is judged. In `mask + judge` the '
    'default judge runs too (`mode="intersect"`, threshold 0, so that the mask decides). Where '
    f"`r` is `{NO_SPOT_STEP}`, all steps of the edit were full.",
    "The judge's share is the part of the whole edit's seconds that the scheduler's steps take; "
    "they hold the judgements and the scheduler's own arithmetic.",
    "S/M is the ideal ratio of a dense to a spot step; its share is dense ms / spot ms / (S/M).",
)
DEFAULT = "default"  # here the judge finds the active tokens; other spot modes give a rectangle
JUDGED = ("mask + judge", DEFAULT)
MODES = ("dense", "mask", *JUDGED)
# the targets hold on a CPU with 1024 noise and 1024 condition tokens, r = 25%, mode `mask`
TARGET_TOKENS, TARGET_RATIO = 1024, 0.25
WHOLE_EDIT_TARGETS = {28: 2.0, 50: 2.2}  # dense / spot, by the number of steps
STEP_TARGET = 0.6  # share of S/M
JUDGE_SHARE = 0.1  # share of a whole edit on a CPU, at most
_WARM_UP_STEPS = 3
Call = Callable[[int, int], dict[str, Any]]  # (size in pixels, steps) -> the pipeline's arguments


@dataclass
class Samples:
    """Times in seconds of one mode at one size and ratio, and its numbers of tokens.

    Attributes:
        edits: number of steps -> the time of each edit.
        forwards: kind of step -> the time of each forward of the transformer.
        judgements: the time of each judgement.
        parts: name -> the time of that part, in each edit with the first number of steps.
        noise: number of noise tokens.
        active: number of active tokens, the mean over the spot steps; None without a spot step.
        sequence: number of all tokens, the prompt's too.
        rows: the numbers of query rows of the spot steps.
        cache_bytes: size of the caches.
    """

    edits: dict[int, list[float]] = field(default_factory=dict)
    forwards: dict[str, list[float]] = field(default_factory=dict)
    judgements: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    noise: int = 0
    active: float | None = None
    sequence: int = 0
    rows: set[int] = field(default_factory=set)
    cache_bytes: int = 0

    @property
    def share(self) -> str:
        """The share of active tokens as text."""
        return NO_SPOT_STEP if self.active is None else f"{self.active / self.noise:.1%}"

    @property
    def ideal(self) -> float:
        """S/M, the ideal ratio of a dense to a spot step; nan without a spot step."""
        if self.active is None:
            return math.nan
        return self.sequence / (self.sequence - 2 * self.noise + self.active)


def rectangle(grid: tuple[int, int], ratio: float) -> np.ndarray:
    """Return a mask, bool [rows, cols]: a centred rectangle of about `ratio` of the tokens."""
    mask = np.zeros(grid, dtype=bool)
    rows, cols = (max(1, round(side * math.sqrt(ratio))) for side in grid)
    top, left = (grid[0] - rows) // 2, (grid[1] - cols) // 2
    mask[top : top + rows, left : left + cols] = True
    return mask


def measure(
    pipe: Any, call: Call, size: int, ratio: float, steps: Sequence[int], repeats: int
) -> dict[str, Samples]:
    """Time every mode at one size and ratio of active tokens."""
    side = size // (2 * pipe.vae_scale_factor)
    mask = rectangle((side, side), ratio)
    samples = {mode: Samples() for mode in MODES}
    for mode in MODES:
        edit(pipe, call(size, _WARM_UP_STEPS), mode, mask, Samples())
    runs = [(count, mode) for count in steps for mode in alternate(MODES, repeats)]
    for count, mode in tqdm(runs, desc=f"{size} px, r = {ratio:.0%}", unit="edit"):
        edit(pipe, call(size, count), mode, mask, samples[mode])
    return samples


def edit(
    pipe: Any,
    given: dict[str, Any],
    mode: str,
    mask: np.ndarray,
    into: Samples,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run the pipeline once in one of the `MODES` and add its times to `into`.

    Args:
        given: arguments of the pipeline's call.
        mask: the active tokens, bool [rows, cols].
        options: further fields of `SpotEditConfig`.
    """
    handle = None
    if mode == DEFAULT:
        handle = spotedit.enable(pipe, **options or {})
    elif mode != "dense":
        handle = spotedit.enable(pipe, threshold=0.0, **options or {})
        handle.set_mask(mask, mode="replace" if mode == "mask" else "intersect")
    with timed_parts(pipe) as watch:
        _, seconds = call_seconds(lambda: pipe(**given), pipe.device)
    steps = given["num_inference_steps"]
    forwards = watch.seconds(TRANSFORMER)
    into.judgements += watch.seconds(JUDGE)
    kinds = ["dense"] * steps
    if handle is not None and handle.report is not None:
        kinds = [step["kind"] for step in handle.report.steps]
        spots = [step for step in handle.report.steps if step["kind"] == "spot"]
        if spots:
            into.active = float(np.mean([step["active"] for step in spots]))
        into.noise = handle.report.steps[0]["total"]
        num_rows = zip(watch.rows, kinds, strict=True)
        into.rows |= {count for count, kind in num_rows if kind == "spot"}
        into.cache_bytes = handle.report.cache_bytes
        handle.disable()
    into.sequence = watch.sequence
    for kind, taken in zip(kinds, forwards, strict=True):
        into.forwards.setdefault(kind, []).append(taken)
    into.edits.setdefault(steps, []).append(seconds)
    if steps == next(iter(into.edits)):
        named = {name: watch.seconds(name) for name in (TRANSFORMER, SELECT, ENCODE, DECODE)}
        parts = {name: sum(values) for name, values in named.items()}
        parts["rest"] = seconds - sum(parts.values())
        for name, value in parts.items():
            into.parts.setdefault(name, []).append(value)


def report(samples: dict[str, Samples], size: int, targets: bool) -> Iterator[Row]:
    """Make the rows of one size and ratio.

    `targets` says whether the device and the ratio are those for which there are targets.
    """
    dense = samples["dense"]
    for mode, taken in samples.items():
        shape: dict[str, Any] = {"px": size, "mode": mode}
        bound = targets and mode == "mask" and taken.noise == TARGET_TOKENS
        if mode != "dense":
            shape["r"] = taken.share
            if taken.active is not None:
                prompt = taken.sequence - 2 * taken.noise
                shape["tokens"] = f"{prompt}+{taken.active:.0f} of {taken.sequence}"
        for kind, values in taken.forwards.items():
            yield Row.milliseconds(f"transformer, {kind} step", values, shape)
        if mode != "dense":
            spots = taken.forwards.get("spot", [])
            dense_step = float(np.median(dense.forwards["dense"]))
            reached = dense_step / float(np.median(spots)) if spots else math.nan
            common: dict[str, Any] = {"samples": min(1, len(spots)), "parameters": shape}
            goal = STEP_TARGET if bound else None
            yield Row("S/M", taken.ideal, "x", **common)
            yield Row("transformer, dense / spot step", reached, "x", **common)
            yield Row("share of S/M", reached / taken.ideal, "share", at_least=goal, **common)
            yield Row.milliseconds("one judgement", taken.judgements, shape)
        first = next(iter(taken.edits))
        at = shape | {"steps": first}
        for name, values in taken.parts.items():
            yield Row.median(f"whole edit: {name}", values, "s", parameters=at)
        if mode in JUDGED:
            pairs = zip(taken.parts[SELECT], taken.edits[first], strict=True)
            shares = [judged / whole for judged, whole in pairs]
            goal = JUDGE_SHARE if targets else None
            yield Row.median("judge's share", shares, "share", at_most=goal, parameters=at)
        for steps, seconds in taken.edits.items():
            at = shape | {"steps": steps}
            yield Row.median("whole edit", seconds, "s", parameters=at)
            if mode != "dense":
                ratios = [d / s for d, s in zip(dense.edits[steps], seconds, strict=True)]
                goal = WHOLE_EDIT_TARGETS.get(steps) if bound else None
                yield Row.median(
                    "whole edit, dense / spot", ratios, "x", at_least=goal, parameters=at
                )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="pixels")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.25], help="active tokens")
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--repeats", type=int, default=1, help="of A B C C B A")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = environment.describe(args.device, edits.WEIGHTS) | {"dtype": args.dtype}
    pipe = edits.load(args.device, getattr(torch, args.dtype))

    def call(size: int, steps: int) -> dict[str, Any]:
        scene = edits.heldout(edits.FIRST_SEED, size)
        return edits.arguments(scene, edits.FIRST_SEED, steps)

    found: list[Row] = []
    for size, ratio in product(args.sizes, args.ratio):
        samples = measure(pipe, call, size, ratio, args.steps, args.repeats)
        found += report(samples, size, (args.device, ratio) == ("cpu", TARGET_RATIO))
        print(rows.save("speed", found, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
