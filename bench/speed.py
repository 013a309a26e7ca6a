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
    "Edits of the tiny editor by the stock pipeline (dense) and with spotedit (spot), measured in "
    "one run. The modes run forwards and then backwards (A B C D D C B A), so that a drift of the "
    "machine affects all of them equally. Values are medians with [20th, 80th percentile].",
    "Spot steps are the steps that skip tokens; the tokens that they recompute are active. `r` is "
    "the share of active tokens. Mode `default` is `spotedit.enable(pipe)` without a mask; its `r` "
    "and `tokens` are means over the spot steps. In the other spot modes a mask makes a centred "
    'rectangle active. In `mask` mode only the mask decides (`set_mask(mode="replace")`) and '
    'nothing is judged. In `mask + judge` mode the default judge runs too (`mode="intersect"`), '
    "but with threshold 0 it calls every token changed. Where `r` is "
    f"`{NO_SPOT_STEP}`, every step computed all tokens.",
    "The judge's share is the part of the whole edit's seconds that is spent in the scheduler's "
    "steps. They include the judgements and the scheduler's own arithmetic.",
    "S/M is the ideal ratio of a dense to a spot step: S is the number of all tokens, M that of "
    "the prompt's and the active tokens. The share of S/M is how much of this ideal is reached: "
    "the measured ratio of the step times, divided by S/M.",
)
DEFAULT = "default"  # mode in which the judge finds the active tokens; the others have a mask
JUDGED = ("mask + judge", DEFAULT)
MODES = ("dense", "mask", *JUDGED)
# There are targets on a CPU with 1024 noise and 1024 condition tokens, r = 25%, in mode `mask`.
TARGET_TOKENS, TARGET_RATIO = 1024, 0.25
WHOLE_EDIT_TARGETS = {28: 2.0, 50: 2.2}  # number of steps -> dense / spot
STEP_TARGET = 0.6  # share of S/M
JUDGE_SHARE = 0.1  # largest share of a whole edit on a CPU
_WARM_UP_STEPS = 3
Call = Callable[[int, int], dict[str, Any]]  # (size in pixels, steps) -> the pipeline's arguments


@dataclass
class Samples:
    """Times in seconds of one mode at one size and ratio, and its numbers of tokens.

    Attributes:
        edits: number of steps -> time of each edit.
        forwards: kind of step -> time of each forward of the transformer.
        judgements: time of each judgement.
        parts: name -> time of that part in each edit; only of edits with the first number of steps.
        noise: number of noise tokens.
        active: mean number of active tokens in the spot steps; None if there is no spot step.
        sequence: number of all tokens, those of the prompt included.
        query_rows: the distinct numbers of query rows that occur in spot steps.
        cache_bytes: size of the caches.
    """

    edits: dict[int, list[float]] = field(default_factory=dict)
    forwards: dict[str, list[float]] = field(default_factory=dict)
    judgements: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    noise: int = 0
    active: float | None = None
    sequence: int = 0
    query_rows: set[int] = field(default_factory=set)
    cache_bytes: int = 0

    @property
    def prompt(self) -> int:
        """Number of prompt tokens; there are as many condition tokens as noise tokens."""
        return self.sequence - 2 * self.noise

    @property
    def active_share(self) -> str:
        """Share of active tokens, as text."""
        return NO_SPOT_STEP if self.active is None else f"{self.active / self.noise:.1%}"

    @property
    def ideal(self) -> float:
        """S/M, the ideal ratio of a dense to a spot step; nan if there is no spot step."""
        return math.nan if self.active is None else self.sequence / (self.prompt + self.active)


def rectangle(grid: tuple[int, int], ratio: float) -> np.ndarray:
    """Return a mask, bool [rows, cols]: a centred rectangle of about `ratio` of the tokens."""
    mask = np.zeros(grid, dtype=bool)
    height, width = (max(1, round(side * math.sqrt(ratio))) for side in grid)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    mask[top : top + height, left : left + width] = True
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
    runs = [(num_steps, mode) for num_steps in steps for mode in alternate(MODES, repeats)]
    for num_steps, mode in tqdm(runs, desc=f"{size} px, r = {ratio:.0%}", unit="edit"):
        edit(pipe, call(size, num_steps), mode, mask, samples[mode])
    return samples


def edit(
    pipe: Any,
    arguments: dict[str, Any],
    mode: str,
    mask: np.ndarray,
    samples: Samples,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run the pipeline once in one of the `MODES` and add its times to `samples`.

    Args:
        arguments: keyword arguments of the pipeline's call.
        mask: active tokens, bool [rows, cols].
        options: further fields of `SpotEditConfig`.
    """
    handle = None
    if mode == DEFAULT:
        handle = spotedit.enable(pipe, **options or {})
    elif mode != "dense":
        handle = spotedit.enable(pipe, threshold=0.0, **options or {})
        handle.set_mask(mask, mode="replace" if mode == "mask" else "intersect")
    with timed_parts(pipe) as watch:
        _, seconds = call_seconds(lambda: pipe(**arguments), pipe.device)
    num_steps = arguments["num_inference_steps"]
    samples.judgements += watch.seconds(JUDGE)
    samples.sequence = watch.sequence
    kinds = ["dense"] * num_steps
    if handle is not None and handle.report is not None:
        steps = handle.report.steps
        kinds = [step["kind"] for step in steps]
        samples.noise = steps[0]["total"]
        active = [step["active"] for step in steps if step["kind"] == "spot"]
        if active:
            samples.active = float(np.mean(active))
        counts = zip(watch.query_rows, kinds, strict=True)
        samples.query_rows |= {count for count, kind in counts if kind == "spot"}
        samples.cache_bytes = handle.report.cache_bytes
        handle.disable()
    for kind, forward in zip(kinds, watch.seconds(TRANSFORMER), strict=True):
        samples.forwards.setdefault(kind, []).append(forward)
    samples.edits.setdefault(num_steps, []).append(seconds)
    first_num_steps = next(iter(samples.edits))
    if num_steps == first_num_steps:
        parts = {name: sum(watch.seconds(name)) for name in (TRANSFORMER, SELECT, ENCODE, DECODE)}
        parts["rest"] = seconds - sum(parts.values())
        for name, part in parts.items():
            samples.parts.setdefault(name, []).append(part)


def result_rows(all_samples: dict[str, Samples], size: int, check_targets: bool) -> Iterator[Row]:
    """Make the rows of one size and ratio; with `check_targets`, compare them with the targets."""
    dense = all_samples["dense"]
    for mode, samples in all_samples.items():
        columns: dict[str, Any] = {"px": size, "mode": mode}
        check_mask_targets = check_targets and mode == "mask" and samples.noise == TARGET_TOKENS
        if mode != "dense":
            columns["r"] = samples.active_share
            if samples.active is not None:
                tokens = f"{samples.prompt}+{samples.active:.0f} of {samples.sequence}"
                columns["tokens"] = tokens
        for kind, seconds in samples.forwards.items():
            yield Row.milliseconds(f"transformer, {kind} step", seconds, columns)
        if mode != "dense":
            target = STEP_TARGET if check_mask_targets else None
            yield from _step_rows(dense, samples, columns, target)
        first_num_steps = next(iter(samples.edits))
        columns_with_steps = columns | {"steps": first_num_steps}
        for name, seconds in samples.parts.items():
            yield Row.median(f"whole edit: {name}", seconds, "s", parameters=columns_with_steps)
        if mode in JUDGED:
            pairs = zip(samples.parts[SELECT], samples.edits[first_num_steps], strict=True)
            shares = [select / whole for select, whole in pairs]
            target = JUDGE_SHARE if check_targets else None
            yield Row.median(
                "judge's share", shares, "share", at_most=target, parameters=columns_with_steps
            )
        for num_steps, seconds in samples.edits.items():
            columns_with_steps = columns | {"steps": num_steps}
            yield Row.median("whole edit", seconds, "s", parameters=columns_with_steps)
            if mode != "dense":
                ratios = [d / s for d, s in zip(dense.edits[num_steps], seconds, strict=True)]
                target = WHOLE_EDIT_TARGETS.get(num_steps) if check_mask_targets else None
                yield Row.median(
                    "whole edit, dense / spot",
                    ratios,
                    "x",
                    at_least=target,
                    parameters=columns_with_steps,
                )


def _step_rows(
    dense: Samples, samples: Samples, columns: Mapping[str, Any], target: float | None
) -> Iterator[Row]:
    """Compare spot steps with dense ones; the values are nan if there is no spot step.

    Args:
        columns: the first columns of the rows.
        target: smallest share of S/M, or None.
    """
    speedup = math.nan
    if "spot" in samples.forwards:
        spot_seconds = float(np.median(samples.forwards["spot"]))
        speedup = float(np.median(dense.forwards["dense"])) / spot_seconds
    for name, value, unit, smallest in (
        ("S/M", samples.ideal, "x", None),
        ("transformer, dense / spot step", speedup, "x", None),
        ("share of S/M", speedup / samples.ideal, "share", target),
    ):
        count = 0 if math.isnan(value) else 1
        yield Row(name, value, unit, samples=count, at_least=smallest, parameters=columns)
    yield Row.milliseconds("one judgement", samples.judgements, columns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="in pixels")
    parser.add_argument(
        "--ratio", type=float, nargs="+", default=[0.25], help="shares of active tokens"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="number of passes through the modes, each forwards and then backwards",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
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

    result: list[Row] = []
    for size, ratio in product(args.sizes, args.ratio):
        samples = measure(pipe, call, size, ratio, args.steps, args.repeats)
        check_targets = args.device == "cpu" and ratio == TARGET_RATIO
        result += result_rows(samples, size, check_targets)
        print(rows.save("speed", result, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
