"""Run an edit in a thread, follow its steps, and cancel it between two of them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from PIL import Image

from ..engine.record import StepProgress

Result = TypeVar("Result")

# Decoding the picture of a step takes at most this share of the time.
_MAX_DECODING_SHARE = 0.2


class Cancelled(Exception):
    """Raised in the thread of a job that was cancelled, to end its work."""


@dataclass(frozen=True)
class Progress:
    """One step of an edit, as the page shows it.

    Attributes:
        index: 0-based position in the loop of `total` steps.
        kind: "dense", "full", "spot" or "skip", as in `EditReport.steps`.
        ratio: the share of the picture's tokens that the step computed.
        picture: the clean picture that is predicted at this step, or None if it was not decoded.
        crop: (index, number of crops) if a crop of the photograph is edited, otherwise None.
    """

    index: int
    total: int
    kind: str
    ratio: float
    picture: Image.Image | None
    crop: tuple[int, int] | None = None


class Job(Generic[Result]):
    """Work in a thread of its own, for one user. Several threads may call its methods.

    Args:
        work: is called with this job, whose `on_step` and `on_crop` it calls.
        with_pictures: decode the predicted picture of some steps.
    """

    def __init__(self, work: Callable[["Job[Result]"], Result], with_pictures: bool) -> None:
        self._work = work
        self._decoder = _PacedDecoder() if with_pictures else None
        self._progress: SimpleQueue[Progress | None] = SimpleQueue()  # None wakes the reader
        self._outcome: Future[Result] = Future()
        self._cancelled = threading.Event()
        self._crop: tuple[int, int] | None = None

    def cancel(self) -> None:
        """Let the work end at its next step, and drop its result."""
        self._cancelled.set()
        self._progress.put(None)

    def check(self) -> None:
        """Raise `Cancelled` if the job was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled

    def on_crop(self, index: int, total: int) -> None:
        """Take note that the edit of a crop begins, the 0-based `index` of `total` crops."""
        self._crop = (index, total)

    def on_step(self, step: StepProgress) -> None:
        """Take note of a step.

        Raises:
            Cancelled: the job was cancelled.
        """
        self.check()
        picture = self._decoder.decode(step) if self._decoder else None
        progress = Progress(step.index, step.total, step.kind, step.ratio, picture, self._crop)
        self._progress.put(progress)

    def steps(self) -> Iterator[Progress]:
        """Start the work, and yield its latest step until it ends or is cancelled.

        A slow reader misses steps. Closing the iterator cancels the job.
        """
        threading.Thread(target=self._run, daemon=True).start()
        try:
            while True:
                progress = self._latest()
                if self._cancelled.is_set():
                    return
                if progress is not None:
                    yield progress
                if self._outcome.done():
                    return
        finally:
            if not self._outcome.done():
                self.cancel()

    def result(self) -> Result:
        """Return what the work returned, after `steps` has ended.

        Raises:
            Cancelled: the job was cancelled before this call. Its last step may still be running.
            Exception: what the work raised.
        """
        self.check()
        return self._outcome.result()

    def _run(self) -> None:
        try:
            self.check()
            self._outcome.set_result(self._work(self))
        except BaseException as error:
            self._outcome.set_exception(error)
        finally:
            self._progress.put(None)

    def _latest(self) -> Progress | None:
        """Wait for a message, and return the newest one that is there."""
        newest = self._progress.get()
        while True:
            try:
                message = self._progress.get_nowait()
            except Empty:
                return newest
            newest = message or newest


class _PacedDecoder:
    """Decodes the pictures of so many steps that this takes little of the time."""

    def __init__(self) -> None:
        self._next_time = 0.0

    def decode(self, step: StepProgress) -> Image.Image | None:
        """Return the picture predicted at this step, or None if it is too early for another."""
        start = time.monotonic()
        if start < self._next_time:
            return None
        picture = step.image
        end = time.monotonic()
        self._next_time = end + (end - start) * (1 / _MAX_DECODING_SHARE - 1)
        return picture
