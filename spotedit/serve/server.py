"""Run the application in this process with uvicorn."""

import signal
import socket
from collections.abc import Sequence

import uvicorn

from ..editor.editor import Editor
from .app import create_app
from .settings import ServeSettings
from .workers import Workers

_MAX_CONNECTIONS = 512  # idle ones included; uvicorn answers further ones with status 503


class _Server(uvicorn.Server):
    """A server that refuses waiting requests as soon as it shuts down, and finishes running ones.

    Unchanged, uvicorn would first wait for the whole queue.
    """

    def __init__(self, config: uvicorn.Config, workers: Workers) -> None:
        super().__init__(config)
        self._workers = workers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._workers.drain()
        await super().shutdown(sockets)


def serve(
    editors: Sequence[Editor],
    settings: ServeSettings,
    listener: socket.socket,
    shutdown_seconds: int,
) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Args:
        editors: loaded pipelines.
        settings: what the server accepts.
        listener: bound socket.
        shutdown_seconds: the longest time for running edits after the signal.
    """
    app = create_app(editors, settings)
    config = uvicorn.Config(
        app,
        timeout_graceful_shutdown=shutdown_seconds,
        limit_concurrency=_MAX_CONNECTIONS,
        server_header=False,
    )
    workers: Workers = app.state.workers
    # uvicorn raises the signal again after it has shut down: SIGTERM must not end the process then
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _Server(config, workers).run(sockets=[listener])
    finally:
        workers.close()
        signal.signal(signal.SIGTERM, previous)
