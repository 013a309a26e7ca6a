"""Run the application in several processes, the replicas of Ray Serve."""

import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from ..editor.editor import Editor
from ..editor.errors import Failure
from ..editor.ray_cluster import ray_cluster
from ..editor.settings import EditorSettings
from .app import create_app
from .settings import ServeSettings

_NAME = "spotedit"
_MONITORING_REQUESTS = 4  # that a replica answers beside edits: health, metrics and models
_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class RayPlace:
    """Where and how often the application runs.

    Attributes:
        address: of a Ray cluster. None starts Ray on this machine, and stops it afterwards.
        host, port: the address to listen at.
        num_replicas: number of processes, which have a pipeline and a queue each.
        shutdown_seconds: longest time for running edits after SIGINT or SIGTERM.
    """

    address: str | None
    host: str
    port: int
    num_replicas: int
    shutdown_seconds: float


def serve_with_ray(settings: EditorSettings, limits: ServeSettings, place: RayPlace) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Raises:
        BadInput: Ray Serve is not installed, or there is no cluster at the address.
        Failure: the replicas did not start.
    """
    with ray_cluster(place.address, "serve"):
        from ray import serve

        try:
            serve.start(http_options={"host": place.host, "port": place.port})
            serve.run(application(settings, limits, place), name=_NAME, route_prefix="/")
            print(
                f"serving {limits.model} with {place.num_replicas} replicas at "
                f"http://{place.host}:{place.port}, Ctrl-C ends it",
                flush=True,
            )
            _wait_for_a_signal()
        except RuntimeError as error:
            raise Failure(f"the replicas did not start: {error}") from error
        finally:
            serve.delete(_NAME)
            if place.address is None:
                serve.shutdown()


def application(settings: EditorSettings, limits: ServeSettings, place: RayPlace) -> Any:
    """Return the application as Ray Serve runs it."""
    from ray import serve

    def build() -> FastAPI:  # called in every replica
        return create_app([Editor(settings)], limits)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=_NAME,
        num_replicas=place.num_replicas,
        # a replica refuses what its queue cannot take; Ray refuses what exceeds both
        max_ongoing_requests=1 + limits.queue + _MONITORING_REQUESTS,
        max_queued_requests=1 + limits.queue,
        graceful_shutdown_timeout_s=place.shutdown_seconds,
        ray_actor_options=_resources(settings),
    )
    return deployment.bind()


def _resources(settings: EditorSettings) -> dict[str, int]:
    """Return what a replica needs. Ray shows it one GPU, which is its only one."""
    import ray

    has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
    uses_gpu = has_gpus and settings.device in (None, "cuda")
    return {"num_cpus": 1, "num_gpus": int(uses_gpu)}


def _wait_for_a_signal() -> None:
    """Return at SIGINT or SIGTERM, whose handlers are restored."""
    received = threading.Event()

    def stop(number: int, frame: object) -> None:
        received.set()

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not received.wait(_WATCH_SECONDS):
            pass
    finally:
        for number, handler in handlers.items():
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
