"""`spotedit serve` edits pictures over HTTP."""

import socket
from dataclasses import replace
from pathlib import Path

import torch

from ..editor.editor import Editor
from ..editor.errors import BadInput
from ..editor.loading import choose_device
from ..editor.settings import EditorSettings
from ..serve.settings import ServeSettings
from .commands import ServeOptions
from .options import require_model

_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def run(options: ServeOptions) -> None:
    """Load a pipeline for each device, and serve until SIGINT or SIGTERM.

    Raises:
        BadInput, Failure: see `spotedit.cli.main`.
    """
    _require_packages()
    from ..serve.server import serve

    limits = _limits(options)
    if options.ray is not None:
        _run_with_ray(options, limits)
        return
    if options.replicas is not None:
        raise BadInput("--replicas needs --ray; without Ray, use --devices")
    editor_settings = _editor_settings(options)
    with _bound_socket(options.host, options.port) as listener:
        editors = [Editor(settings) for settings in editor_settings]
        names = ", ".join(str(editor.device) for editor in editors)
        print(
            f"serving {limits.model} on {names} at {_address(listener)}, Ctrl-C ends it", flush=True
        )
        serve(editors, limits, listener, options.shutdown_seconds)


def _run_with_ray(options: ServeOptions, limits: ServeSettings) -> None:
    from ..serve.ray_serve import RayPlace, serve_with_ray

    if options.devices is not None:
        raise BadInput("--devices and --ray exclude each other; say how many with --replicas")
    if options.port == 0:
        raise BadInput("--port 0: Ray Serve cannot choose a free port; name one")
    settings = options.editor_settings(options.model)
    if not options.ray:  # the machines of a cluster may have other devices
        choose_device(settings.device, settings.offload)
    place = RayPlace(
        options.ray or None,
        options.host,
        options.port,
        options.replicas or 1,
        options.shutdown_seconds,
    )
    serve_with_ray(settings, limits, place)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name.replace("_", "-") for name in _PACKAGES if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise BadInput(f'missing packages: {names}; install them: pip install "spotedit[serve]"')


def _editor_settings(options: ServeOptions) -> list[EditorSettings]:
    """Return the settings of one editor for each device, which this machine has."""
    shared = options.editor_settings(options.model)
    settings = [replace(shared, device=device) for device in _devices(options)]
    for item in settings:
        choose_device(item.device, item.offload)
    return settings


def _devices(options: ServeOptions) -> list[str | None]:
    """Return the names of the devices, one for each pipeline."""
    if options.devices is None:
        return [options.pipeline.device]
    if options.pipeline.device is not None:
        raise BadInput("--device and --devices exclude each other; leave one of them out")
    if options.devices != "all":
        return [name.strip() for name in options.devices.split(",")]
    if not torch.cuda.is_available():
        raise BadInput("--devices all: this machine has no CUDA device; name them, or leave it out")
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _limits(options: ServeOptions) -> ServeSettings:
    return ServeSettings(
        model=_public_name(require_model(options.model)),
        queue=options.queue,
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        max_output_pixels=options.max_output_pixels,
        max_prompt=options.max_prompt,
        max_pictures=options.max_pictures,
        transfer_seconds=options.transfer_seconds,
        request_seconds=options.request_seconds,
        api_key=None if options.api_key_file is None else _read_key(options.api_key_file),
    )


def _public_name(model: str) -> str:
    """Return the model's name for clients, who need not know the folders of the server."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _read_key(path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--api-key-file {path}: {error}; expected a text file") from error
    if not key or not key.isascii() or len(key.split()) != 1:
        raise BadInput(f"--api-key-file {path}: expected one word in ASCII, the key")
    return key


def _bound_socket(host: str, port: int) -> socket.socket:
    """Reserve the address before the model is loaded. Nothing can connect before `listen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(f"--host {host} --port {port}: {error}; choose another") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
