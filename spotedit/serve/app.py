"""`create_app` makes the FastAPI application of a server."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .. import __version__
from ..editor.editor import Editor
from .edits import Service
from .errors import ApiError, answer_errors
from .fields import EditForm
from .metrics import CountRequests, Metrics
from .settings import ServeSettings
from .workers import Workers


def create_app(editors: Sequence[Editor], settings: ServeSettings) -> FastAPI:
    """Make an application that edits pictures, with one pipeline for each of `editors`.

    `app.state` has its `workers` and its `metrics`. Stopping the application stops the workers. The
    caller closes the editors.

    Args:
        editors: loaded pipelines of the same settings, at least one.
        settings: what the server accepts.
    """
    metrics = Metrics()
    workers = Workers(editors, settings.queue, metrics)
    service = Service(settings, workers, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        workers.close()

    # The pages of /docs would load scripts from another host.
    app = FastAPI(
        title="spotedit", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.workers, app.state.metrics = workers, metrics
    answer_errors(app)
    app.include_router(_edits(service))
    app.include_router(_monitoring(service))
    paths = frozenset(app.openapi()["paths"])
    app.add_middleware(CountRequests, metrics=metrics, paths=paths)
    return app


def _edits(service: Service) -> APIRouter:
    """Return the routes for clients."""
    started = int(time.time())

    async def check_client(request: Request) -> None:
        _check_key(request, service.settings.api_key)
        _check_origin(request, has_key=service.settings.api_key is not None)

    router = APIRouter(prefix="/v1", dependencies=[Depends(check_client)])

    @router.post("/images/edits", openapi_extra={"requestBody": _form_schema()})
    async def edit(request: Request) -> Response:
        """Edit a picture by an instruction."""
        return await service.answer(request)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the one model of this server."""
        model = {
            "id": service.settings.model,
            "object": "model",
            "created": started,
            "owned_by": "spotedit",
        }
        return {"object": "list", "data": [model]}

    return router


def _monitoring(service: Service) -> APIRouter:
    """Return the routes for those who run the server. They need no key."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "alive"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """Say whether new requests are taken."""
        if service.workers.draining:
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ready"})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return the figures of this process for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _check_key(request: Request, key: str | None) -> None:
    """Compare the client's key in a time that does not depend on where the two differ."""
    sent = request.headers.get("authorization", "")
    if key is None or secrets.compare_digest(sent.encode(), f"Bearer {key}".encode()):
        return
    raise ApiError(
        401,
        "the API key is missing or wrong; send the header Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _check_origin(request: Request, has_key: bool) -> None:
    """Refuse requests from web pages of other sites, which a visitor's browser sends unasked.

    A site can let its own name mean this machine (DNS rebinding), and then the page seems to be
    ours. Without a key, only pages whose address is no such name are ours.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return
    place = origin.partition("://")[2]
    is_own = place == request.headers.get("host") and (has_key or _is_address(place))
    if not is_own:
        raise ApiError(
            403,
            "the request comes from a web page of another site; send it from a program, or through "
            "a proxy that removes the header Origin",
            code="foreign_origin",
        )


def _is_address(place: str) -> bool:
    """Tell whether HOST or HOST:PORT is an IP address or this machine's own name."""
    try:
        host = urlsplit(f"//{place}").hostname or ""
        return host == "localhost" or bool(ip_address(host))
    except ValueError:
        return False


def _form_schema() -> dict[str, Any]:
    """Return the multipart form as OpenAPI describes it."""
    schema = EditForm.model_json_schema()
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {"image": file, "mask": file} | schema["properties"]
    schema["required"] = ["image", *schema["required"]]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
