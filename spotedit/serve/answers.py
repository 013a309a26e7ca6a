"""Make the answers to a request for edits: JSON, or server-sent events."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from starlette import types
from starlette.requests import ClientDisconnect

from ..editor.editor import Edited
from .drafts import Draft
from .errors import ApiError
from .pictures import EditRequest, encode

Send = Callable[[bytes], Awaitable[None]]

_PART_BYTES = 2**16


@dataclass(frozen=True)
class Finished:
    """One picture of an answer.

    Attributes:
        data: the picture file, in base64.
        size: width x height, as text.
        figures: what the report says.
    """

    data: str
    size: str
    figures: dict[str, Any]


def finish(edit: EditRequest, edited: Edited) -> Finished:
    """Put the edit into the original picture if the client wants that, and encode it.

    If the edit has no place in the original, the model's picture is the answer, and a note says so.
    """
    picture, note = edited.picture, None
    keep = edit.fields.keep or ("original" if edit.fields.size is None else "model")
    if keep == "original":
        try:
            picture = edited.report.composite(edit.image, edited.picture)
        except ValueError as error:
            keep, note = "model", str(error)
    figures = {**_figures(edited), "kept": keep, "kept_note": note}
    return Finished(_base64(encode(picture, edit.fields)), _size(picture.size), figures)


def json_answer(
    edit: EditRequest, pictures: Sequence[Finished], model: str, seconds: float
) -> bytes:
    """Return the JSON of an answer. `seconds` is the time since the upload."""
    content = {
        "created": int(time.time()),
        "data": [{"b64_json": picture.data} for picture in pictures],
        "background": "opaque",
        "output_format": edit.fields.output_format,
        "size": pictures[0].size,
        "spotedit": {
            "model": model,
            "seconds": seconds,
            "images": [
                {"seed": edit.fields.seed + number, **picture.figures}
                for number, picture in enumerate(pictures)
            ],
        },
    }
    return json.dumps(content).encode()


def draft_event(edit: EditRequest, draft: Draft) -> bytes:
    """Return the event of a draft. It has the model's size, even if the original is kept."""
    data, size = _base64(encode(draft.picture, edit.fields)), _size(draft.picture.size)
    index = {"partial_image_index": draft.index}
    return _event("image_edit.partial_image", index | _picture(edit, data, size))


def completed_event(edit: EditRequest, number: int, edited: Edited) -> bytes:
    """Return the event of a finished picture; `number` counts those of a request from 0."""
    picture = finish(edit, edited)
    figures = {"spotedit": {"seed": edit.fields.seed + number, **picture.figures}}
    return _event("image_edit.completed", _picture(edit, picture.data, picture.size) | figures)


def error_event(error: ApiError) -> bytes:
    """Return the event of an error that came after the stream began."""
    return _event("error", error.body())


class Answer(Response):
    """An answer that holds the place of its request until the client has read it.

    Args:
        produce: sends the body with the function that it gets, in as many calls as it likes.
        seconds: longest time for the whole answer.
        held: closed when the answer ends, with `ClientDisconnect` if the client left or did not
            read it in time.
    """

    def __init__(
        self,
        produce: Callable[[Send], Awaitable[None]],
        media_type: str,
        seconds: float,
        held: ExitStack,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type=media_type)
        del self.headers["content-length"]
        self._produce = produce
        self._seconds = seconds
        self._held = held

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        async def send_body(data: bytes) -> None:
            # the server takes a part when the client has read most of those before
            for start in range(0, len(data), _PART_BYTES):
                part = data[start : start + _PART_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})

        with self._held:
            try:
                async with asyncio.timeout(self._seconds):
                    start = {"status": self.status_code, "headers": self.raw_headers}
                    await send({"type": "http.response.start", **start})
                    await self._produce(send_body)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
            except TimeoutError:
                raise ClientDisconnect from None


def _event(name: str, content: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **content})}\n\n".encode()


def _picture(edit: EditRequest, data: str, size: str) -> dict[str, Any]:
    """Return what the events of drafts and of finished pictures share."""
    return {
        "b64_json": data,
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": edit.fields.output_format,
        "quality": "auto",
        "size": size,
    }


def _figures(edited: Edited) -> dict[str, Any]:
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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size(size: tuple[int, int]) -> str:
    width, height = size
    return f"{width}x{height}"
