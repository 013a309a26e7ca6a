"""Editors that take jobs from one queue, a thread for each editor."""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from ..editor.editor import Editor
from ..engine.record import StepProgress
from .errors import ApiError, busy
from .metrics import Metrics

Result = TypeVar("Result")
OnStep = Callable[[StepProgress], object]
Work = Callable[[Editor, OnStep], Result]

_FIRST_ESTIMATE = 1.0  # seconds of a request, until one is finished
_NEWEST_SHARE = 0.3  # of the newest duration in the running mean


class Stopped(Exception):
    """Raised after a step to end an edit that nobody waits for any more."""


class Job(Generic[Result]):
    """The work of one request.

    Attributes:
        waited: seconds in the queue. 0 before the work starts.
    """

    def __init__(self, work: Work[Result]) -> None:
        self.waited = 0.0
        self._work: Work[Result] | None = work
        self._queued_at = time.perf_counter()
        self._stop = threading.Event()

    def run(self, editor: Editor) -> Result:
        """Do the work.

        Raises:
            Stopped: `stop` was called.
        """
        work = self._work
        self._raise_if_stopped()
        assert work is not None  # only `stop` drops it
        self.waited = time.perf_counter() - self._queued_at
        return work(editor, self._after_step)

    def stop(self) -> None:
        """End the work after its current step, or before it starts.

        The pictures of the request are dropped at once, although the queue keeps the job.
        """
        self._stop.set()
        self._work = None

    def _after_step(self, progress: StepProgress) -> None:
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise Stopped


class Workers:
    """The editors of a server, and the places of its queue.

    A request holds a place from its first byte to its answer, so that uploads count as well. There
    are as many places as editors, and `queue_limit` more.
    """

    def __init__(self, editors: Sequence[Editor], queue_limit: int, metrics: Metrics) -> None:
        self.draining = False
        self._metrics = metrics
        self._num_places = len(editors) + queue_limit
        self._num_taken = 0
        self._mean_seconds = _FIRST_ESTIMATE
        self._idle: queue.SimpleQueue[Editor] = queue.SimpleQueue()
        for editor in editors:
            self._idle.put(editor)
        self._threads = ThreadPoolExecutor(len(editors), thread_name_prefix="spotedit-serve")
        self._jobs: set[Job] = set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place inside the block. Call it from the event loop only.

        Raises:
            ApiError: no place is free, or the server is shutting down.
        """
        if self.draining:
            raise self._shutting_down()
        if self._num_taken >= self._num_places:
            raise busy(
                f"all {self._num_places} places of this server are taken; try again later",
                "queue_full",
                self.retry_after,
                status=429,
            )
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1

    @property
    def retry_after(self) -> int:
        """Whole seconds until a place may be free: about as long as a request takes."""
        return math.ceil(self._mean_seconds)

    async def run(self, job: Job[Result]) -> Result:
        """Queue a job and wait for its result. Cancelling this coroutine stops the job.

        Raises:
            ApiError: the server shuts down before the job starts.
        """
        if self.draining:
            raise self._shutting_down()
        self._jobs.add(job)
        self._metrics.queued.inc()
        future = self._threads.submit(self._work, job)
        future.add_done_callback(self._count_if_never_started)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self.draining and future.cancelled():
                raise self._shutting_down() from None
            raise
        finally:
            self._jobs.discard(job)
            job.stop()  # has no effect on a job that is done

    def drain(self) -> None:
        """Refuse new jobs and those that wait. Running ones go on."""
        self.draining = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop the running jobs after their current step, and wait for that."""
        self.drain()
        for job in list(self._jobs):
            job.stop()
        self._threads.shutdown()

    def _work(self, job: Job[Result]) -> Result:
        """Run a job with an editor. This is called in a thread, of which there is one an editor."""
        self._metrics.queued.dec()
        editor = self._idle.get_nowait()
        start = time.perf_counter()
        try:
            with self._metrics.running.track_inprogress():
                return job.run(editor)
        finally:
            self._idle.put(editor)
            newest = time.perf_counter() - start
            self._mean_seconds += _NEWEST_SHARE * (newest - self._mean_seconds)

    def _count_if_never_started(self, future: Future) -> None:
        if future.cancelled():
            self._metrics.queued.dec()

    def _shutting_down(self) -> ApiError:
        return busy("the server is shutting down; try again", "shutting_down", self.retry_after)
