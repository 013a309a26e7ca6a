"""Measure the kernels on one machine, in one run: ``python -m bench``.

Measures a matrix product and a copy. Then it checks every operation at every shape against its
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
    "Times are of one layer, for the judge of one picture, on random values: medians with [20th, "
    "80th percentile]. The calls of a shape take turns (A B B A). Before each call the earlier "
    "results are overwritten, the caches are flushed, and the device is kept busy until the host "
    "is ahead, so these are device times.",
    "Speeds count what an operation must compute or move, whatever a call does. `of ceiling` is "
    "the share of the matrix product's speed for attention and whole layers, and of the copy's for "
    "all others. The reference of attention is SDPA with the backend that PyTorch picks.",
    "`check` compares a call with the reference in fp64. Its error may be twice that of the "
    "reference in this dtype, plus 2 eps max|reference|. A call that is wrong at one shape has no "
    "speed at any shape.",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--shapes", nargs="*", choices=NAMES,
        help="default: all real shapes, on a CPU tiny; without a name only the ceilings",
    )  # fmt: skip
    parser.add_argument("--no-compiled", action="store_true",
                        help="leave out the baselines of torch.compile")  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                        help="default: bfloat16, on a CPU float32")  # fmt: skip
    parser.add_argument("--repeats", type=int, help="runs of every call (default: 30, on a CPU 4)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no case after this time"
    )
    parser.add_argument("--check", action="store_true",
                        help="only check our implementations, and write nothing")  # fmt: skip
    parser.add_argument("--name", default="kernels", help="name of the files")
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
    faults: list[str] = []
    end = time.monotonic() + args.seconds
    with torch.no_grad():
        for name, build in plan.items():
            if time.monotonic() > end:
                faults.append(f"{name}: not run, after {args.seconds:g} s")
                continue
            result, wrong = attempt(build, torch.device(args.device), repeats)
            print(f"{name}: {'; '.join(wrong) or 'right'}", file=sys.stderr, flush=True)
            faults += [f"{name}: {fault}" for fault in wrong]
            if table is not None and result is not None:
                table.add(result)
    if table is not None:
        print(table.finish())
    print("\n".join(faults) or "all results are right", file=sys.stderr)
    return int(bool(faults))


def attempt(
    build: Callable[[], Case], device: torch.device, repeats: int
) -> tuple[Result | None, list[str]]:
    """Measure a case; return its result, or None, and what is wrong with it."""
    try:
        result = measure.run(build(), device, repeats)
    except Exception as error:  # such as too little memory, which must not cost the other cases
        return None, [f"failed: {error!r}"]
    return result, [
        f"{outcome.name} {outcome.status}"
        for outcome in result.outcomes
        if outcome.status.startswith(("wrong", "failed"))
    ]


class Table:
    """Holds the rows so far. They are written after every case, in case the process is ended."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, repeats: int, out: Path, name: str
    ) -> None:
        self.out, self.name = out, name
        self.targets = device.type == "cuda"
        self.results: list[Result] = []
        self.machine = environment.describe(device) | {"dtype": str(dtype).removeprefix("torch.")}
        ceilings = measure.ceilings(device, dtype, repeats)
        self.ceilings = {name: float(np.median(speeds)) for name, speeds in ceilings.items()}
        units = {"matmul": "TFLOP/s", "copy": "TB/s"}
        self.ceiling_rows = [Row.median(n, speeds, units[n]) for n, speeds in ceilings.items()]
        self.rows = self.ceiling_rows
        self.save()

    def add(self, result: Result) -> None:
        """Add a case's result and write all rows."""
        self.results.append(result)
        measured = figures.result_rows(self.results, self.ceilings, self.targets)
        self.rows = self.ceiling_rows + measured
        self.save()

    def save(self) -> str:
        """Write the rows, and return them as markdown."""
        return rows.save(self.name, self.rows, self.machine, NOTES, self.out)

    def finish(self) -> str:
        """Draw the plots if there is anything to draw, and return the rows as markdown."""
        if self.results:
            plots.roofline(self.rows, self.out / f"{self.name}_roofline.png")
            plots.sweep(self.rows, self.out / f"{self.name}_sweep.png")
        return self.save()


if __name__ == "__main__":
    sys.exit(main())
