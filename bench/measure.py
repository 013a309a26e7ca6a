"""Correctness, then time, of a case's calls: in turn, on a cold cache, over poisoned results."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .attention import SDPA
from .cases import Case, Tensors
from .timing import Stopwatch, alternate

FLUSH = 2**26  # fp32 values, 256 MiB: more than any cache
LEAD = 2_000_000  # cycles, about 1 ms, that the device waits so that the host is ahead of it


@dataclass(frozen=True)
class Outcome:
    """What became of one call of a case.

    Attributes:
        name: the call's.
        status: "ok", or "wrong", "failed" or "unavailable" with the reason.
        seconds: of every timed call; none unless it is ok.
        ours: whether it ran a kernel of this package.
    """

    name: str
    status: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A case without its tensors, and its outcomes."""

    op: str
    at: Mapping[str, str | int | float]
    flops: float
    bytes: float
    ceiling: str
    facts: Mapping[str, tuple[float, str]]
    outcomes: Sequence[Outcome]


class Recorder(TorchDispatchMode):
    """Whether an op of this package was called in the block."""

    ours = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ours |= func.namespace == "spotedit"
        return func(*args, **(kwargs or {}))


def poison(tensors: Tensors) -> None:
    """Make them wrong, in place: memory that is handed out again is then wrong too."""
    for tensor in tensors:
        tensor.fill_(math.nan if tensor.is_floating_point() else 1)


def fault(found: Tensors, exact: Tensors, plain: Tensors, dtype: torch.dtype) -> str:
    """What is wrong with a result; empty if nothing is.

    The bound is the tests': |found - exact| <= 2 |plain - exact| + 2 eps(dtype) max|exact|, in the
    maximum norm; `exact` is the reference's result in fp64, `plain` its result in `dtype`.
    Booleans and integers are equal.
    """
    for i, (a, e, p) in enumerate(zip(found, exact, plain, strict=True)):
        if not a.is_floating_point():
            if not torch.equal(a, e):
                return f"result {i} differs in {int((a != e).sum())} places"
            continue
        if a.numel() == 0:
            continue
        error, allowed = ((x.double() - e).abs().max().item() for x in (a, p))
        bound = 2 * allowed + 2 * torch.finfo(dtype).eps * e.abs().max().item()
        if not error <= bound:  # nan is wrong
            return f"result {i} errs by {error:.2g}, allowed are {bound:.2g}"
    return ""


def check(case: Case, names: Collection[str] | None = None) -> list[Outcome]:
    """Whether the calls (of `names`, or all) give the reference's result over poisoned memory."""
    exact, plain = case.expected(Tensor.double), case.expected(Tensor.clone)
    outcomes = []
    for name, call in case.calls.items():
        if names is not None and name not in names:
            continue
        ours = False
        try:
            poison(call())  # the first call may compile, too
            case.before()
            if name == "auto":
                with Recorder() as recorder:
                    poison(call())
                ours = recorder.ours
                case.before()
            wrong = fault(case.read(call()), exact, plain, case.dtype)
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
    """Seconds of at least `repeats` runs of each, in turn (A B B A)."""
    watch = Stopwatch(device)
    flush = torch.rand(FLUSH if device.type == "cuda" else 1, device=device)
    for name in alternate(list(calls), (repeats + 1) // 2):
        before()
        flush.sum()  # read: what is written would go back to memory during the call
        if device.type == "cuda":
            torch.cuda._sleep(LEAD)
        poison(watch.wrap(name, calls[name])())
    return {name: watch.seconds(name) for name in calls}


def run(case: Case, device: torch.device, repeats: int) -> Result:
    """`check`, then the time of each call that passed; no repeats: only our calls, no times."""
    outcomes = check(case, None if repeats else ("triton", "auto", "reference"))
    right = {o.name: case.calls[o.name] for o in outcomes if o.status == "ok"}
    if repeats:
        seconds = timed(right, device, repeats, case.before)
        outcomes = [replace(o, seconds=seconds.get(o.name, [])) for o in outcomes]
    return Result(case.op, case.at, case.flops, case.bytes, case.ceiling, case.facts, outcomes)


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Sequence[float]]:
    """TFLOP/s of a square matrix product and TB/s of a copy, on random data."""
    side, count = (8192, 2**30) if device.type == "cuda" else (512, 2**22)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(count, device=device)  # 4 GiB
    target = torch.empty_like(source)
    calls = {"matmul": lambda: (torch.mm(a, b),), "copy": lambda: (target.copy_(source),)}
    work = {"matmul": 2.0 * side**3, "copy": 2.0 * source.nbytes}
    timed(calls, device, 2)  # warms up
    found = timed(calls, device, repeats)
    return {name: [work[name] / s / 1e12 for s in taken] for name, taken in found.items()}
