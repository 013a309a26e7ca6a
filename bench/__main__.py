"""The kernels on one machine, in one run: ``python -m bench``.

Measures a matrix product and a copy, then checks every operation at every shape against its
reference and times it beside its baselines. Exits with 1 if a result is wrong or a call fails.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from . import environment, figures, measure, plots, rows
from .cases import Case
from .measure import Result
from .rows import Row
from .suite import GPU_SHAPES, NAMES, suite

NOTES = (
    "One layer (the judge: one picture), random values; medians [20th, 80th percentile]. The calls "
    "of a shape alternate (A B B A). Before each, results are poisoned, caches flushed and the "
    "device kept busy until the host is ahead: these are device times.",
    "Speeds charge what an operation must compute or move, not what a call does. `of ceiling`: of "
    "the matrix product for attention and whole layers, of the copy for the others. Attention's "
    "reference is SDPA with the backend that PyTorch picks.",
    "`check`: against the reference in fp64, error at most twice the reference's own in this dtype "
    "plus 2 eps max|reference|. What is wrong at one shape has no speed at any.",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--shapes", nargs="*", choices=NAMES,
        help="default: all real ones; CPU: tiny; given without a name: the ceilings alone",
    )  # fmt: skip
    parser.add_argument("--no-compiled", action="store_true",
                        help="leave out the baselines of torch.compile")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="default: bfloat16; CPU: float32")  # fmt: skip
    parser.add_argument("--repeats", type=int, help="of every call (default: 30; CPU: 4)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after these")
    parser.add_argument("--check", action="store_true",
                        help="correctness of the implementations only; writes nothing")  # fmt: skip
    parser.add_argument("--name", default="kernels", help="of the files of rows and plots")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for rows and plots")
    args = parser.parse_args(argv)
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("no CUDA device that PyTorch can use here; --device cpu runs the references")
    dtype = getattr(torch, args.dtype or ("bfloat16" if cuda else "float32"))
    shapes = (GPU_SHAPES if cuda else ("tiny",)) if args.shapes is None else args.shapes
    plan = suite(shapes, args.device, dtype, not args.no_compiled)
    repeats = 0 if args.check else args.repeats or (30 if cuda else 4)
    table = None
    if not args.check:
        table = Table(torch.device(args.device), dtype, repeats, args.out, args.name)
    broken, end = [], time.monotonic() + args.seconds
    with torch.no_grad():
        for name, build in plan.items():
            if time.monotonic() > end:
                broken.append(f"{name}: not run, after {args.seconds:g} s")
                continue
            result, wrong = attempt(build, torch.device(args.device), repeats)
            print(f"{name}: {'; '.join(wrong) or 'right'}", file=sys.stderr, flush=True)
            broken += [f"{name}: {fault}" for fault in wrong]
            if table is not None and result is not None:
                table.add(result)
    if table is not None:
        print(table.finish())
    print("\n".join(broken) or "all results are right", file=sys.stderr)
    return bool(broken)


def attempt(
    build: Callable[[], Case], device: torch.device, repeats: int
) -> tuple[Result | None, list[str]]:
    """A case's result, and what is wrong with it."""
    try:
        result = measure.run(build(), device, repeats)
    except Exception as error:  # such as too little memory for one shape must not cost the others
        return None, [f"failed: {error!r}"]
    wrong = [o for o in result.outcomes if o.status.startswith(("wrong", "failed"))]
    return result, [f"{outcome.name} {outcome.status}" for outcome in wrong]


class Table:
    """The rows so far, written after every case: what ends the process costs only the rest."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, repeats: int, out: Path, name: str
    ) -> None:
        self.out, self.name = out, name
        self.targets, self.results = device.type == "cuda", []
        self.machine = environment.describe(device) | {"dtype": str(dtype).removeprefix("torch.")}
        ceilings = measure.ceilings(device, dtype, repeats)
        self.peak = {name: float(np.median(rates)) for name, rates in ceilings.items()}
        units = {"matmul": "TFLOP/s", "copy": "TB/s"}
        self.rows = self.ceilings = [Row.median(n, r, units[n]) for n, r in ceilings.items()]
        self.save()

    def add(self, result: Result) -> None:
        self.results.append(result)
        self.rows = self.ceilings + figures.report(self.results, self.peak, self.targets)
        self.save()

    def save(self) -> str:
        return rows.save(self.name, self.rows, self.machine, NOTES, self.out)

    def finish(self) -> str:
        """Draw the plots where there is anything to draw; returns the table as markdown."""
        if self.results:
            plots.roofline(self.rows, self.out / f"{self.name}_roofline.png")
            plots.sweep(self.rows, self.out / f"{self.name}_sweep.png")
        return self.save()


if __name__ == "__main__":
    sys.exit(main())
