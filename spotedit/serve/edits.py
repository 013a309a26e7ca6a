"""Answer `POST /v1/images/edits`, as one JSON object or as a stream of events."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import ExitStack, aclosing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from ..editor.editor import Edited, Editor
from ..editor.errors import BadInput, Failure
from .answers import Answer, Send, completed_event, draft_event, error_event, finish, json_answer
from .drafts import Draft, Drafts
from .errors import CLIENT_GONE, ApiError, bad_request, busy, internal_error
from .form import read_form
from .metrics import Metrics
from .pictures import EditRequest, decode, size_arguments
from .settings import ServeSettings
from .workers import Job, OnStep, Stopped, Workers

logger = logging.getLogger("spotedit.serve")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """What every request needs."""

    settings: ServeSettings
    workers: Workers
    metrics: Metrics

    async def answer(self, request: Request) -> Response:
        """Answer one request for edits.

        Raises:
            ApiError: see docs/serve.md.
        """
        with ExitStack() as held:
            held.enter_context(self.workers.place())
            held.enter_context(self._counted_if_client_leaves())
            upload = read_form(request, self.settings)
            edit = await asyncio.to_thread(decode, await upload, self.settings)
            seconds = self.settings.transfer_seconds
            if edit.fields.stream:
                produce = partial(self._stream, request, edit)
                seconds += self.settings.request_seconds
                return Answer(produce, "text/event-stream", seconds, held.pop_all())
            body = await _unless_client_leaves(request, self._whole(edit))
            return Answer(lambda send: send(body), "application/json", seconds, held.pop_all())
        return Response(status_code=CLIENT_GONE)

    @contextmanager
    def _counted_if_client_leaves(self) -> Iterator[None]:
        """End the block without an exception if the client leaves in it."""
        try:
            yield
        except ClientDisconnect:
            self.metrics.cancelled.inc()

    async def _whole(self, edit: EditRequest) -> bytes:
        """Make all pictures of a request, and return the JSON of the answer."""
        start = time.perf_counter()
        async with aclosing(self._results(edit)) as results:
            edits = [item async for item in results if isinstance(item, Edited)]
        pictures = [await asyncio.to_thread(finish, edit, edited) for edited in edits]
        seconds = time.perf_counter() - start
        return await asyncio.to_thread(json_answer, edit, pictures, self.settings.model, seconds)

    async def _stream(self, request: Request, edit: EditRequest, send: Send) -> None:
        """Send drafts, and each picture as soon as it is finished. An error is an event as well.

        Raises:
            ClientDisconnect: the client left.
        """

        async def send_all() -> None:
            number = 0
            async with aclosing(self._results(edit)) as results:
                async for item in results:
                    if isinstance(item, Draft):
                        await send(await asyncio.to_thread(draft_event, edit, item))
                    else:
                        await send(await asyncio.to_thread(completed_event, edit, number, item))
                        number += 1

        try:
            await _unless_client_leaves(request, send_all())
        except ApiError as error:
            await send(error_event(error))
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("an edit failed")
            await send(error_event(internal_error()))

    async def _results(self, edit: EditRequest) -> AsyncGenerator[Draft | Edited, None]:
        """Wait for a pipeline and edit; yield drafts and edits as soon as they are made.

        Closing the iterator ends the work.

        Raises:
            ApiError: the edit failed, or took too long.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.request_seconds
        made: asyncio.Queue[Draft | Edited | None] = asyncio.Queue()

        def put(item: Draft | Edited) -> None:
            loop.call_soon_threadsafe(made.put_nowait, item)

        def work(editor: Editor, on_step: OnStep) -> None:
            with editor.session(edit.image) if edit.fields.n > 1 else nullcontext():
                for number in range(edit.fields.n):
                    drafts = Drafts(edit.fields.partial_images, on_step, put)
                    put(edit_picture(editor, edit, number, drafts))

        async def run() -> None:
            try:
                await self.workers.run(job)
            finally:
                made.put_nowait(None)

        job = Job(work)
        working = asyncio.create_task(run())
        try:
            with self._explained():
                while True:
                    async with asyncio.timeout_at(deadline):
                        item = await made.get()
                    if item is None:
                        break
                    if isinstance(item, Edited):
                        self.metrics.count_edit(item)
                    yield item
                await working
            self.metrics.wait.observe(job.waited)
        finally:
            await _cancelled(working)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of an edit into those that a client gets."""
        retry_after = self.workers.retry_after
        try:
            yield
        except BadInput as error:
            raise bad_request(str(error), code="invalid_edit") from None
        except Failure as error:
            logger.error("an edit failed: %s", error)
            message = "the server ran out of memory; try again, or send a smaller size"
            raise busy(message, "out_of_memory", retry_after) from None
        except Stopped:
            raise busy("the server was shut down", "shutting_down", retry_after) from None
        except TimeoutError:
            limit = self.settings.request_seconds
            message = f"no answer within {limit:g} s; try again, with fewer pictures"
            raise busy(message, "timeout", retry_after, status=504) from None


def edit_picture(editor: Editor, edit: EditRequest, number: int, on_step: OnStep) -> Edited:
    """Make one of the `n` edits of a request, counted from 0.

    Raises:
        BadInput, Failure: see `Editor.edit`.
    """
    return editor.edit(
        edit.image,
        edit.fields.prompt,
        seed=edit.fields.seed + number,
        mask=edit.mask,
        mask_mode=edit.fields.mask_mode,
        on_step=on_step,
        arguments=size_arguments(editor.pipe, edit.fields.size),
    )


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`. Cancel it if the client closes the connection before.

    Raises:
        ClientDisconnect: the client left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_leaves(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _cancelled(working)
        await _cancelled(leaving)


async def _client_leaves(request: Request) -> None:
    """Return when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Task) -> None:
    """Cancel a task and wait for its end, without its result. It may be done already."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
