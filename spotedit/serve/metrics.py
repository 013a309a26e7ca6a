"""What `GET /metrics` shows, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..editor.editor import Edited

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and CPU time
        self.requests = Counter(
            "spotedit_requests",
            "Answers by path and HTTP status; 499: the client left.",
            ["path", "status"],
            registry=self.registry,
        )
        self.queued = self._gauge("queue_length", "Requests that wait for a pipeline.")
        self.running = self._gauge("running", "Requests that a pipeline works on.")
        self.wait = self._histogram("wait_seconds", "Time in the queue of a request.", _SECONDS)
        self.edit = self._histogram("edit_seconds", "Duration of one edit.", _SECONDS)
        self.ratio = self._histogram(
            "ratio", "r: the share of the tokens that a spot step computed.", _FRACTIONS
        )
        self.tokens = Counter(
            "spotedit_tokens",
            "Noise tokens of all steps, by whether they were computed or reused.",
            ["fate"],
            registry=self.registry,
        )
        self.unedited = self._counter("unedited_edits", "Edits that left the picture as it was.")
        self.cancelled = self._counter(
            "cancelled_requests", "Requests whose client left before the answer."
        )

    def count_edit(self, edited: Edited) -> None:
        """Count one finished edit."""
        report = edited.report
        num_total = sum(step["total"] for step in report.steps)
        num_active = sum(step["active"] for step in report.steps)
        self.edit.observe(edited.seconds)
        self.ratio.observe(report.mean_ratio)
        self.tokens.labels("computed").inc(num_active)
        self.tokens.labels("reused").inc(num_total - num_active)
        self.unedited.inc(report.unedited)

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"spotedit_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"spotedit_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"spotedit_{name}", text, buckets=buckets, registry=self.registry)


class CountRequests:
    """ASGI middleware that counts the answers by path and status.

    Paths that the server does not have are counted together, since clients choose them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # another application may have mounted this one below a path of its own
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        path = path if path in self._paths else "other"
        has_started = False

        def count(status: int) -> None:
            self._metrics.requests.labels(path, str(status)).inc()

        async def counting_send(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            if not has_started:
                count(500)  # Starlette answers with it outside of this middleware
            raise
