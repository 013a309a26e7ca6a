"""Editors, pictures and requests for the tests of `spotedit.serve`."""

import asyncio
import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from small_kontext import HEIGHT, WIDTH, prompted_kontext

from spotedit.editor.editor import Editor
from spotedit.editor.settings import EditorSettings
from spotedit.serve.settings import ServeSettings

for package in ("fastapi", "httpx", "multipart", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

NUM_STEPS = 2  # the second one reuses tokens
DEADLINE = 30  # seconds; a test that waits longer has failed
PATH = "/v1/images/edits"
SETTINGS = ServeSettings(model="random", queue=4)


def random_editor(monkeypatch, **arguments) -> Editor:
    """Return an editor of a random pipeline; `arguments` are those of its calls.

    All of these editors have the same weights.
    """
    monkeypatch.setattr("spotedit.editor.editor.load", lambda *args: prompted_kontext())
    arguments = {"num_inference_steps": NUM_STEPS} | arguments
    return Editor(EditorSettings(model="random", device="cpu", arguments=arguments))


def application(editors: list[Editor], settings: ServeSettings = SETTINGS):
    from spotedit.serve.app import create_app

    return create_app(editors, settings)


def client_of(editor: Editor, settings: ServeSettings = SETTINGS):
    """Return a client of an application, which runs inside the client's `with` block."""
    from fastapi.testclient import TestClient

    return TestClient(application([editor], settings))


def picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def form(image=None, mask=None, **fields) -> dict:
    """Return the arguments of httpx for the form of an edit.

    Args:
        image: bytes of the picture file; a random picture by default.
        mask: bytes of the mask file.
        fields: further fields, or others in place of the usual ones. None leaves one out.
    """
    files = {"image": ("a.png", image or encoded(picture()), "image/png")}
    if mask is not None:
        files["mask"] = ("mask.png", mask, "image/png")
    usual = {"prompt": "add a hat", "seed": 0, "keep": "model"}
    data = {name: str(value) for name, value in (usual | fields).items() if value is not None}
    return {"files": files, "data": data}


def pictures(answer) -> list[Image.Image]:
    """Return the pictures of an answer."""
    assert answer.status_code == 200, answer.text
    return [
        Image.open(BytesIO(base64.b64decode(item["b64_json"]))) for item in answer.json()["data"]
    ]


def error(answer, status: int) -> dict:
    """Return the error of an answer, which has the form of hosted APIs."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    content = answer.json()["error"]
    assert content.keys() == {"message", "type", "param", "code"}
    return content


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.convert("RGB").tobytes() == b.convert("RGB").tobytes()


class Call:
    """One request to an application, by ASGI, whose client may leave, or may not read the answer.

    Args:
        is_cut_short: half of the upload comes.
        num_read: number of parts of the answer that the client reads; None: all.
    """

    def __init__(self, app, is_cut_short=False, num_read=None, **fields):
        import httpx

        request = httpx.Request("POST", "http://test" + PATH, **form(**fields))
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": headers,
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self._body = request.read()
        self._left = asyncio.Event()
        self._has_sent = False
        self.status = None
        self.body = b""
        self._is_cut_short = is_cut_short
        self._num_read = num_read
        self.task = asyncio.create_task(app(self._scope, self._receive, self._send))

    async def _receive(self):
        if not self._has_sent:
            self._has_sent = True
            body = self._body[: len(self._body) // 2] if self._is_cut_short else self._body
            return {"type": "http.request", "body": body, "more_body": self._is_cut_short}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if self._num_read == 0:
            await asyncio.Event().wait()
        if self._num_read is not None:
            self._num_read -= 1
        self.body += message["body"]

    async def leave(self):
        """Close the connection, and wait until the application is done with the request."""
        self._left.set()
        await asyncio.wait_for(self.task, DEADLINE)
