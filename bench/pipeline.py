"""Time whole edits at FLUX.1-Kontext's real shapes: ``python -m bench.pipeline``.

The weights are random, which measures speed, not quality. The rows are written after every edit,
and a mode that fails costs only its own rows. After the edits come the cost of a number of rows
that is new to the process, and a profile of single spot steps.
"""

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import spotedit

from . import environment, identity, profile_step, rows
from .kontext import SHAPES, Shape, arguments, build, compiled
from .modes import (
    GRAPH_OPTION,
    KINDS,
    NOTES,
    ON_COMPILED,
    SPOT,
    SPOT_COMPILED,
    SPOT_GRAPH,
    UNFUSED,
    Case,
    Measured,
    captures_graphs,
    cases,
    result_rows,
)
from .rows import Row
from .speed import edit, rectangle
from .unfused import unfused

# At the real shape these ratios give padded numbers of rows that no mode has run before.
NEW_RATIOS = {SPOT: (0.03, 0.07, 0.13, 0.16, 0.26), SPOT_COMPILED: (0.04, 0.085, 0.15, 0.18, 0.3)}
_WARM_UP_STEPS = 3
_NEW_M_STEPS = 5


class Pipelines:
    """Holds the stock pipeline, and one with the same weights and compiled blocks."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype, backend: str) -> None:
        self.shape, self.backend = shape, backend
        self.eager = build(shape, device, dtype)
        self._compiled: Any = None

    def of(self, mode: str) -> Any:
        """Return the pipeline that `mode` runs on. The compiled one is built at first use."""
        if mode not in ON_COMPILED:
            return self.eager
        if self._compiled is None:
            self._compiled = compiled(self.eager, self.backend)
        return self._compiled

    def restore(self) -> None:
        """Disable the pipelines that a failed edit left enabled, and free the memory it held."""
        for pipe in (self.eager, self._compiled):
            if pipe is not None:
                spotedit.disable(pipe)
        gc.collect()

    def grid(self) -> tuple[int, int]:
        """Return the token grid of the noise (rows, columns)."""
        side = self.shape.pixels // (2 * self.eager.vae_scale_factor)
        return side, side


def run(pipes: Pipelines, case: Case, steps: int, samples: Measured) -> None:
    """Time one edit and add its times to `samples`."""
    mode, ratio = case
    pipe = pipes.of(mode)
    call = arguments(pipes.shape, pipe.device, pipe.dtype, steps)
    cuda = pipe.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    options = {GRAPH_OPTION: True} if mode == SPOT_GRAPH else {}
    with unfused() if mode == UNFUSED else nullcontext():
        edit(pipe, call, KINDS[mode], rectangle(pipes.grid(), ratio), samples, options)
    if cuda:
        samples.peaks.append(torch.cuda.max_memory_allocated())


def new_m(pipes: Pipelines, mode: str, seen: set[int]) -> Iterator[Row]:
    """Time the first spot step at numbers of rows M that are not in `seen`."""
    first, later, all_seen = [], [], set(seen)
    for ratio in NEW_RATIOS[mode]:
        samples = Measured()
        run(pipes, (mode, ratio), _NEW_M_STEPS, samples)
        if samples.query_rows <= all_seen:
            continue
        all_seen |= samples.query_rows
        first.append(samples.forwards["spot"][0])
        later += samples.forwards["spot"][1:]
    shape = {"mode": mode, "distinct M": len(all_seen - seen)}
    if first:
        yield Row.milliseconds("transformer, first step at a new M", first, shape)
        yield Row.milliseconds("transformer, later steps at a new M", later, shape)


@dataclass
class Run:
    """Keeps what one run of the command has measured so far, and what failed.

    Attributes:
        machine: description of the machine and the settings.
        targets: whether there are targets for this shape and device.
        out: folder for the rows.
        samples: the timed edits.
        new_m: rows of the first steps at new numbers of rows.
        profile: rows of the profile.
        failed: a line for each failure.
    """

    pipes: Pipelines
    machine: Mapping[str, str]
    targets: bool
    out: Path
    samples: dict[Case, Measured] = field(default_factory=dict)
    new_m: list[Row] = field(default_factory=list)
    profile: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def attempt(self, name: str, action: Callable[..., None], *args: Any) -> bool:
        """Run `action`, note a failure, save the rows, and return whether nothing failed."""
        num_failed = len(self.failed)
        try:
            action(*args)
        except Exception as error:
            self.failed.append(f"{name}: {' '.join(repr(error).split())[:300]}")
        succeeded = len(self.failed) == num_failed
        if not succeeded:  # outside `except`, whose traceback would keep the edit's tensors
            self.pipes.restore()
        self.save()
        return succeeded

    def check(self, dtype: torch.dtype) -> None:
        """Compare our edits with the stock pipeline's, at the tiny shape."""
        self.failed += identity.faults(str(self.pipes.eager.device), dtype)

    def measure(self, case: Case, steps: int) -> None:
        """Time one edit; if the case is new, run a short edit before it."""
        if case not in self.samples:
            run(self.pipes, case, _WARM_UP_STEPS, Measured())
        run(self.pipes, case, steps, self.samples.setdefault(case, Measured()))

    def measure_new_m(self, mode: str) -> None:
        """Time first steps at numbers of rows that the timed edits of `mode` did not have."""
        samples = [samples for case, samples in self.samples.items() if case[0] == mode]
        seen = set().union(*(each.query_rows for each in samples))
        self.new_m += new_m(self.pipes, mode, seen)

    def profile_step(self, mode: str, ratio: float) -> None:
        """Profile one spot step."""
        pipe, mask = self.pipes.of(mode), rectangle(self.pipes.grid(), ratio)
        shape = {"mode": mode, "r": f"{mask.mean():.1%}"}
        self.profile += profile_step.spot_step(pipe, self.pipes.shape, mask, shape)

    def profile_attention(self) -> None:
        """Time PyTorch's attention at new numbers of rows."""
        pipe = self.pipes.eager
        self.profile += profile_step.attention(self.pipes.shape, pipe.device, pipe.dtype)

    def save(self) -> str:
        """Write the rows, and return them as markdown."""
        notes = [*NOTES, *(f"FAILED: {failure}" for failure in self.failed)]
        if not captures_graphs():
            notes.append(f"`{SPOT_GRAPH}` was not run: spotedit has no such option yet.")
        listed = [*result_rows(self.samples, self.targets), *self.new_m]
        text = rows.save("pipeline", listed, self.machine, notes, self.out)
        if self.profile:
            name, notes = "pipeline-profile", list(profile_step.NOTES)
            text += rows.save(name, self.profile, self.machine, notes, self.out)
        return text


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    end = time.monotonic() + args.seconds
    shape, dtype = SHAPES[args.size], getattr(torch, args.dtype)
    if args.layers:
        depth = dict(zip(("num_layers", "num_single_layers"), args.layers, strict=True))
        shape = replace(shape, transformer={**shape.transformer, **depth})
    machine = environment.describe(args.device)
    machine |= {"shape": str(shape), "dtype": args.dtype, "compiled with": args.backend}
    pipes = Pipelines(shape, args.device, dtype, args.backend)
    targets = args.size == "kontext" and not args.layers and "H100" in machine["device"]
    bench = Run(pipes, machine, targets, args.out)

    working = cases(args.ratio, args.judge, args.unfused)
    if not bench.attempt("identity", bench.check, dtype):  # edits that are wrong get no speed
        working = [case for case in working if KINDS[case[0]] == "dense"]
    rounds = [steps for steps in args.steps for _ in range(2 * args.repeats)]
    for number, steps in enumerate(rounds):
        order = working[::-1] if number % 2 else list(working)
        for case in tqdm(order, desc=f"{steps} steps", unit="edit"):
            if number > 0 and time.monotonic() > end:
                break
            if not bench.attempt(f"{case[0]}, r = {case[1]:.0%}", bench.measure, case, steps):
                working.remove(case)
    working_modes = {mode for mode, _ in working}
    spot_modes = [mode for mode in NEW_RATIOS if mode in working_modes]
    for mode in spot_modes:
        bench.attempt(f"{mode}, new M", bench.measure_new_m, mode)
    for ratio, mode in product(args.profile, spot_modes):
        bench.attempt(f"{mode}, r = {ratio:.0%}, profile", bench.profile_step, mode, ratio)
    if args.profile:
        bench.attempt("attention at a new M", bench.profile_attention)
    print(bench.save())
    if bench.failed:
        sys.exit("\n".join(bench.failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="kontext")
    parser.add_argument(
        "--layers",
        type=int,
        nargs=2,
        metavar=("DUAL", "SINGLE"),
        help="numbers of blocks; default: those of the size",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2, 0.4, 1.0],
        help="shares of active tokens",
    )
    parser.add_argument(
        "--judge", type=float, nargs="*", default=[0.2], help="ratios of the mode with the judge"
    )
    parser.add_argument(
        "--unfused", type=float, nargs="*", default=[0.1], help="ratios of the eager-unfused mode"
    )
    parser.add_argument(
        "--profile", type=float, nargs="*", default=[0.05, 0.2],
        help="profile a spot step at these ratios; without a value, none",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, nargs="+", default=[28])
    parser.add_argument("--repeats", type=int, default=1, help="rounds of A B C C B A")
    parser.add_argument(
        "--seconds", type=float, default=math.inf,
        help="after this time only finish the first round, then the new M and the profile",
    )  # fmt: skip
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    return parser


if __name__ == "__main__":
    main()
