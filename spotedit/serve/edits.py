"""Answer `POST /v1/images/edits`."""

import asyncio
import base64
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.requests import ClientDisconnect
from torch import Tensor

from ..editor.editor import Edited, Editor
from ..editor.errors import BadInput, Failure
from .errors import CLIENT_GONE, bad_request, busy
from .fields import EditForm
from .form import read_form
from .metrics import Metrics
from .pictures import decode, encode, size_arguments
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
        try:
            with self.workers.place():
                upload = await read_form(request, self.settings)
                start = time.perf_counter()
                image, mask = await asyncio.to_thread(decode, upload, self.settings)
                body = await self._in_time(
                    _unless_client_leaves(request, self._edit(upload.fields, image, mask, start))
                )
                return JSONResponse(body)
        except ClientDisconnect:
            self.metrics.cancelled.inc()
            return Response(status_code=CLIENT_GONE)

    async def _edit(
        self, fields: EditForm, image: Image.Image, mask: Tensor | None, start: float
    ) -> dict[str, Any]:
        """Wait for a pipeline, edit, and return the JSON of the answer."""

        def work(editor: Editor, on_step: OnStep) -> list[Edited]:
            return edit_pictures(editor, fields, image, mask, on_step)

        job = Job(work)
        edits = await self._explained(self.workers.run(job))
        self.metrics.wait.observe(job.waited)
        for edited in edits:
            self.metrics.count_edit(edited)
        answers = [await asyncio.to_thread(finish, image, edited, fields) for edited in edits]
        width, height = answers[0].size
        return {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(answer.data).decode()} for answer in answers],
            "background": "opaque",
            "output_format": fields.output_format,
            "size": f"{width}x{height}",
            "spotedit": {
                "model": self.settings.model,
                "images": [
                    {"seed": fields.seed + number, **answer.figures}
                    for number, answer in enumerate(answers)
                ],
                "waited_seconds": job.waited,
                "seconds": time.perf_counter() - start,
            },
        }

    async def _in_time(self, work: Coroutine[Any, Any, Result]) -> Result:
        limit = self.settings.request_seconds
        try:
            async with asyncio.timeout(limit):
                return await work
        except TimeoutError:
            message = f"no answer within {limit:g} s; try again, with fewer pictures"
            raise busy(message, "timeout", self.workers.retry_after, status=504) from None

    async def _explained(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Turn the errors of an `Editor` into those that a client gets."""
        try:
            return await work
        except BadInput as error:
            raise bad_request(str(error), code="invalid_edit") from None
        except Failure as error:
            logger.error("an edit failed: %s", error)
            message = "the server ran out of memory; try again, or send a smaller size"
            raise busy(message, "out_of_memory", self.workers.retry_after) from None
        except Stopped:
            raise busy(
                "the server was shut down", "shutting_down", self.workers.retry_after
            ) from None


def edit_pictures(
    editor: Editor, fields: EditForm, image: Image.Image, mask: Tensor | None, on_step: OnStep
) -> list[Edited]:
    """Make the `n` edits of a request, with one seed after the other.

    Raises:
        BadInput, Failure: see `Editor.edit`.
    """
    return [
        editor.edit(
            image,
            fields.prompt,
            seed=fields.seed + number,
            mask=mask,
            mask_mode=fields.mask_mode,
            on_step=on_step,
            arguments=size_arguments(editor.pipe, fields.size),
        )
        for number in range(fields.n)
    ]


@dataclass(frozen=True)
class Finished:
    """One picture of an answer: its file, its (width, height), and the figures of its edit."""

    data: bytes
    size: tuple[int, int]
    figures: dict[str, Any]


def finish(original: Image.Image, edited: Edited, fields: EditForm) -> Finished:
    """Put the edit into the original picture if the client wants that, and encode it.

    If the edit has no place in the original, the model's picture is the answer, and a note says so.
    """
    picture, note = edited.picture, None
    keep = fields.keep or ("original" if fields.size is None else "model")
    composite = getattr(edited.report, "composite", None)
    if composite is None:
        keep = "model"
    if keep == "original":
        try:
            picture = composite(original, edited.picture)
        except ValueError as error:
            keep, note = "model", str(error)
    figures = {**_figures(edited), "kept": keep, "kept_note": note}
    return Finished(encode(picture, fields), picture.size, figures)


def _figures(edited: Edited) -> dict[str, Any]:
    """Return what the report says about the edit, as JSON."""
    report = edited.report
    kinds = report.kinds
    return {
        "r": report.mean_ratio,
        "work_saved": report.flops_saved,
        "steps": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "seconds": edited.seconds,
        "unedited": bool(report.unedited),
        "doubts": report.doubts,
        "reason": report.reason,
        "mask_note": report.mask_note,
    }


async def _unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`. Cancel it if the client closes the connection before.

    Raises:
        ClientDisconnect: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _client_leaves(request: Request) -> None:
    """Return when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
