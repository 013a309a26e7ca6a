"""Open the page on this machine: without telemetry, and with nothing from other hosts."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..editor.errors import Failure

MAX_FILE_SIZE = "100mb"

_FONTS = ("system-ui", "sans-serif")
_MONO_FONTS = ("ui-monospace", "monospace")

# The browser loads nothing from other hosts, whatever the page asks for.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

_STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#notice { border-left: 4px solid var(--secondary-500); padding: 0.25rem 0.75rem; }
#status .status { margin: 0 0 0.25rem 0; min-height: 1.5em; }
#details textarea { font-family: var(--font-mono); }
/* Undoing also takes the picture away, and Gradio has no option against it. The bin stays. */
#painting .zoom-number ~ button:not(:last-of-type) { display: none; }
#history, #history .grid-wrap { min-height: 0 !important; max-height: 28rem; }
#history .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)) !important; padding-top: 2rem;
}
#history .caption-label { left: 0; right: 0; bottom: 0; max-width: none; border-radius: 0; }
#status progress {
  appearance: none; width: 100%; height: 0.75rem; border: none; border-radius: 0.375rem;
  overflow: hidden; background: var(--border-color-primary);
}
#status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#status progress::-webkit-progress-value { background: var(--secondary-600); }
#status progress::-moz-progress-bar { background: var(--secondary-600); }
"""


def launch(
    app: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    in_browser: bool = False,
    wait: bool = True,
) -> str:
    """Serve the page, and return its address.

    Args:
        host: the address to listen at. Other machines can reach the page only if it is not that of
            the loopback.
        port: None takes the first free one from 7860 on.
        share: also open a public address through Gradio's servers.
        in_browser: open the page in the user's browser.
        wait: serve until the user interrupts the program; otherwise in a thread.

    Raises:
        Failure: the port is not free, or the address is not one of this machine.
    """
    options: dict[str, Any] = {
        "server_name": host,
        "server_port": port,
        "share": share,
        "inbrowser": in_browser,
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": False,
        "footer_links": [],
        "run_history": False,
        "allowed_paths": [],
        "max_file_size": MAX_FILE_SIZE,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "theme": gr.themes.Default(
            primary_hue="blue", secondary_hue="blue", font=_FONTS, font_mono=_MONO_FONTS
        ),
        "css": _STYLE,
        "app_kwargs": {"middleware": [Middleware(_WithHeaders)]},
    }
    try:
        _, local_url, share_url = app.launch(**options)
    except OSError as error:
        raise Failure(f"the page cannot be opened at {host}: {error}") from error
    address = share_url or local_url
    if wait:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # removes all files, as Ctrl-C
        print(f"spotedit app: open {address} in a browser; Ctrl-C ends it", flush=True)
        try:
            app.block_thread()
        finally:
            _remove_copies(app)
    return address


def _remove_copies(app: gr.Blocks) -> None:
    """Remove Gradio's copies of all pictures; it does not do so itself while a page is open."""
    for files in app.temp_file_sets:
        for file in tuple(files):
            with suppress(OSError):
                Path(file).unlink()


class _WithHeaders:
    """Adds `_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)
