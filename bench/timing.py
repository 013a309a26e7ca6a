"""Where the time of a call goes: named parts, measured from outside with as little as possible."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar
from unittest.mock import patch

import torch

TRANSFORMER = "transformer"  # its forward, with our gathering and scattering of the rows
SELECT = "select"  # the scheduler's step, with our judgement and bookkeeping
JUDGE = "judge"  # the part of SELECT that scores the tokens and lists the active ones
ENCODE, DECODE = "vae encode", "vae decode"


Name = TypeVar("Name", bound=str)


class Stopwatch:
    """Seconds of named calls: of the host, or of the stream between two events on a CUDA device.

    Nothing waits for the device before `seconds` is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self.sequence = 0  # rows of the joint sequence in the last forward
        self.rows: list[int] = []  # query rows of every forward of an enabled pipeline

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed under `name`."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            try:
                return function(*args, **kwargs)
            finally:
                self._marks[name].append((start, self._mark()))

        return timed

    def seconds(self, name: str) -> list[float]:
        """Of every call under `name`, in their order."""
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
    """Time the parts of the pipeline's calls inside the block, enabled or stock."""
    # imported here: the rest of this module serves the kernels too, which need no diffusers
    from spotedit.engine.session import Session
    from spotedit.judge.select import SpotSelector

    watch = Stopwatch(pipe.device)
    transformer = pipe.transformer
    stock, session_run = type(transformer), Session.run
    forward, session_forward = (watch.wrap(TRANSFORMER, f) for f in (stock.__call__, session_run))
    inside = False  # a session's forward, which is timed as a whole

    def note(kwargs: Mapping[str, Any]) -> None:
        names = ("encoder_hidden_states", "hidden_states")
        watch.sequence = sum(kwargs[name].shape[1] for name in names)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inside:
            return stock.__call__(self, *args, **kwargs)
        note(kwargs)
        return forward(self, *args, **kwargs)

    def run(session: Session, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        nonlocal inside
        note(kwargs)
        inside = True
        try:
            return session_forward(session, call, kwargs)
        finally:
            inside = False
            watch.rows.append(session.rows)

    with ExitStack() as undo:
        # hooks run inside nn.Module.__call__, so a subclass's own is the only way around them
        undo.callback(setattr, transformer, "__class__", stock)
        transformer.__class__ = type(stock.__name__, (stock,), {"__call__": __call__})
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
    """What `call` returns, and its seconds until the device has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, time.perf_counter() - start


def alternate(names: Sequence[Name], repeats: int) -> list[Name]:
    """`repeats` times there and back again (A B B A): a drift of the machine meets all alike."""
    return [*names, *reversed(names)] * repeats
