"""Check the calls of a case, then time them in turn, on a cold cache, over poisoned results."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .attention import SDPA
from .cases import Case, Tensors
from .rows import Parameters
from .timing import Stopwatch, alternate

FLUSH = 2**26  # number of fp32 values: 256 MiB, more than any cache holds
LEAD = 2_000_000  # cycles, about 1 ms, for which the device waits until the host is ahead of it


@dataclass(frozen=True)
class Outcome:
    """What became of one call of a case.

    Attributes:
        name: name of the call.
        status: "ok", or "wrong", "failed" or "unavailable" with the reason.
        ours: whether it ran a kernel of this package.
        seconds: time of every run; empty unless the status is "ok".
    """

    name: str
    status: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A case without its tensors, and its outcomes."""

    op: str
    parameters: Parameters
    flops: float
    bytes: float
    ceiling: str
    facts: Mapping[str, tuple[float, str]]
    outcomes: Sequence[Outcome]


class Recorder(TorchDispatchMode):
    """Notes in `ours` whether an op of this package was called inside the block."""

    ours = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ours |= func.namespace == "spotedit"
        return func(*args, **(kwargs or {}))


def poison(tensors: Tensors) -> None:
    """Overwrite tensors with wrong values, so that memory that is reused holds them too."""
    for tensor in tensors:
        tensor.fill_(math.nan if tensor.is_floating_point() else 1)


def fault(results: Tensors, exact: Tensors, eager: Tensors, dtype: torch.dtype) -> str:
    """Return what is wrong with the results, or "".

    `exact` are the reference's results in fp64, `eager` its results in `dtype`. The bound is that
    of the tests, in the maximum norm: |result - exact| <= 2 |eager - exact| + 2 eps max|exact|.
    Booleans and integers must be equal.
    """
    for i, (result, truth, plain) in enumerate(zip(results, exact, eager, strict=True)):
        if not result.is_floating_point():
            if not torch.equal(result, truth):
                return f"result {i} differs in {int((result != truth).sum())} places"
            continue
        if result.numel() == 0:
            continue
        error, eager_error = ((x.double() - truth).abs().max().item() for x in (result, plain))
        bound = 2 * eager_error + 2 * torch.finfo(dtype).eps * truth.abs().max().item()
        if not error <= bound:  # nan is wrong
            return f"result {i}: error {error:.2g} exceeds the bound {bound:.2g}"
    return ""


def check(case: Case, names: Collection[str] | None = None) -> list[Outcome]:
    """Check that the calls give the reference's result over poisoned memory.

    `names` limits the calls that are checked.
    """
    exact, eager = case.expected(Tensor.double), case.expected(Tensor.clone)
    outcomes = []
    for name, call in case.calls.items():
        if names is not None and name not in names:
            continue
        ours = False
        try:
            poison(call())  # the first call may compile
            case.before()
            if name == "auto":
                with Recorder() as recorder:
                    poison(call())
                ours = recorder.ours
                case.before()
            wrong = fault(case.read(call()), exact, eager, case.dtype)
            status = f"wrong: {wrong}" if wrong else "ok"
        except Exception as error:  # one kernel's failure must not cost the others' rows
            kind = "unavailable" if name in SDPA else "failed"
            status = f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        outcomes.append(Outcome(name, status, ours or name == "triton"))
    return outcomes


def timed(
    calls: dict[str, Callable[[], Tensors]],
    device: torch.device,
    repeats: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of at least `repeats` runs of each call, in turn (A B B A)."""
    watch = Stopwatch(device)
    flush = torch.rand(FLUSH if device.type == "cuda" else 1, device=device)
    for name in alternate(list(calls), (repeats + 1) // 2):
        before()
        flush.sum()  # reads; values written here would go to memory during the call
        if device.type == "cuda":
            torch.cuda._sleep(LEAD)
        poison(watch.wrap(name, calls[name])())
    return {name: watch.seconds(name) for name in calls}


def run(case: Case, device: torch.device, repeats: int) -> Result:
    """Check the calls and time those that pass. With 0 repeats, only check our implementations."""
    outcomes = check(case, None if repeats else ("triton", "auto", "reference"))
    right = {o.name: case.calls[o.name] for o in outcomes if o.status == "ok"}
    if repeats:
        seconds = timed(right, device, repeats, case.before)
        outcomes = [replace(o, seconds=seconds.get(o.name, [])) for o in outcomes]
    return Result(
        case.op, case.parameters, case.flops, case.bytes, case.ceiling, case.facts, outcomes
    )


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Sequence[float]]:
    """Measure the TFLOP/s of a square matrix product and the TB/s of a copy, on random data."""
    side, count = (8192, 2**30) if device.type == "cuda" else (512, 2**22)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(count, device=device)  # 4 GiB on a GPU
    target = torch.empty_like(source)
    calls = {"matmul": lambda: (torch.mm(a, b),), "copy": lambda: (target.copy_(source),)}
    work = {"matmul": 2.0 * side**3, "copy": 2.0 * source.nbytes}
    timed(calls, device, 2)  # warms up
    times = timed(calls, device, repeats)
    return {name: [work[name] / s / 1e12 for s in seconds] for name, seconds in times.items()}
