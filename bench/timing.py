"""Time named parts of a pipeline's call from outside, changing as little as possible."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar
from unittest.mock import patch

import torch

TRANSFORMER = "transformer"  # its forward, and our gathering and scattering of the rows
SELECT = "select"  # the scheduler's step, and our judgement and bookkeeping
JUDGE = "judge"  # the part of SELECT that scores the tokens and lists the active ones
ENCODE, DECODE = "vae encode", "vae decode"
Name = TypeVar("Name", bound=str)


class Stopwatch:
    """Times named calls: on the host, or between two events of the stream on a CUDA device.

    It does not wait for the device until `seconds` is called.

    Attributes:
        sequence: number of rows of the joint sequence in the last forward.
        query_rows: number of query rows in each forward of an enabled pipeline.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self.sequence = 0
        self.query_rows: list[int] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed under `name`."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            try:
                return function(*args, **kwargs)
            finally:
                self._marks[name].append((start, self._mark()))

        return timed

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of every call under `name`, in their order."""
        marks = self._marks[name]
        if self.device.type != "cuda":
            return [end - start for start, end in marks]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1000 for start, end in marks]

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def timed_parts(pipe: Any) -> Iterator[Stopwatch]:
    """Time the parts of the pipeline's calls inside the block, whether it is enabled or stock."""
    # imported here: the kernels' benches use the rest of this module and need no diffusers
    from spotedit.engine.session import Session
    from spotedit.judge.select import SpotSelector

    watch = Stopwatch(pipe.device)
    transformer = pipe.transformer
    stock_class = type(transformer)
    timed_stock_forward = watch.wrap(TRANSFORMER, stock_class.__call__)
    timed_session_run = watch.wrap(TRANSFORMER, Session.run)
    in_session = False  # a session's forward is timed as a whole, not the stock forward inside it

    def note_sequence(kwargs: Mapping[str, Any]) -> None:
        names = ("encoder_hidden_states", "hidden_states")
        watch.sequence = sum(kwargs[name].shape[1] for name in names)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if in_session:
            return stock_class.__call__(self, *args, **kwargs)
        note_sequence(kwargs)
        return timed_stock_forward(self, *args, **kwargs)

    def run(session: Session, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        nonlocal in_session
        note_sequence(kwargs)
        in_session = True
        try:
            return timed_session_run(session, forward, kwargs)
        finally:
            in_session = False
            watch.query_rows.append(session.rows)

    with ExitStack() as undo:
        # Hooks run inside nn.Module.__call__, so only a subclass can time them too.
        undo.callback(setattr, transformer, "__class__", stock_class)
        transformer.__class__ = type(stock_class.__name__, (stock_class,), {"__call__": __call__})
        undo.enter_context(patch.object(Session, "run", run))
        for name, owner, attribute in (
            (ENCODE, pipe.vae, "encode"),
            (DECODE, pipe.vae, "decode"),
            (SELECT, Session, "scheduler_step"),
            (JUDGE, SpotSelector, "__call__"),
        ):
            timed = watch.wrap(name, getattr(owner, attribute))
            undo.enter_context(patch.object(owner, attribute, timed))
        yield watch


def call_seconds(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what `call` returns, and the seconds until the device has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, time.perf_counter() - start


def alternate(names: Sequence[Name], repeats: int) -> list[Name]:
    """Return the names there and back again (A B B A), `repeats` times.

    In this order a steady drift of the machine meets all names alike.
    """
    return [*names, *reversed(names)] * repeats
