"""Make the answers to a request for edits: JSON, or server-sent events."""

import base64
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from starlette import types
from starlette.requests import ClientDisconnect

from ..editor.editor import Edited
from .drafts import Draft
from .errors import ApiError
from .pictures import EditRequest, encode

Event = dict[str, Any]
Send = Callable[[Event], Awaitable[None]]


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


def json_body(
    edit: EditRequest, pictures: Sequence[Finished], model: str, seconds: float
) -> dict[str, Any]:
    """Return the JSON of an answer. `seconds` is the time since the upload."""
    return {
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


def draft_event(edit: EditRequest, draft: Draft) -> Event:
    """Return the event of a draft. It has the model's size, even if the original is kept."""
    return {
        "type": "image_edit.partial_image",
        "partial_image_index": draft.index,
        **_picture(edit, _base64(encode(draft.picture, edit.fields)), _size(draft.picture.size)),
    }


def completed_event(edit: EditRequest, picture: Finished, number: int) -> Event:
    """Return the event of a finished picture; `number` counts those of a request from 0."""
    return {
        "type": "image_edit.completed",
        **_picture(edit, picture.data, picture.size),
        "spotedit": {"seed": edit.fields.seed + number, **picture.figures},
    }


def error_event(error: ApiError) -> Event:
    """Return the event of an error that came after the stream began."""
    return {"type": "error", **error.body()}


class EventStream(Response):
    """A stream of server-sent events.

    Args:
        produce: sends the events with the function that it gets. If it raises `ClientDisconnect`,
            nothing more is sent.
        held: closed when the stream has ended.
    """

    def __init__(self, produce: Callable[[Send], Awaitable[None]], held: ExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._produce = produce
        self._held = held

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        async def send_body(body: bytes, more_body: bool) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more_body})

        async def send_event(event: Event) -> None:
            text = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            await send_body(text.encode(), more_body=True)

        with self._held, suppress(ClientDisconnect):
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            await self._produce(send_event)
            await send_body(b"", more_body=False)


def _picture(edit: EditRequest, data: str, size: str) -> Event:
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
