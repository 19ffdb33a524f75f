"""OpenTelemetry traces (the extra `otel`): a span for each request, and within it one for each stage of a query.

No span holds a token, a text, an image's name or an address.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nsfse_runtime.extras import need
from nsfse_runtime.server.middleware import HTTPMiddleware
from nsfse_runtime.server.telemetry import SCOPE_KEY, Log, LogHandler, RequestLog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_STAGES = ("decode", "queue", "image", "text", "stage1", "stage2")  # in the order in which they follow each other
_FLUSH_MS = 2000
_NANOSECONDS = 1_000_000  # in a millisecond


class Tracing:
    """Makes spans, and sends them in batches from a thread of its own.

    Where to is a matter of OpenTelemetry's variables, such as OTEL_EXPORTER_OTLP_ENDPOINT; by default a collector on
    this machine. Spans that cannot be sent are dropped, and logged.

    Args:
        version: The service's version.
        log: Takes the warnings of OpenTelemetry.
        exporter: What sends spans; OTLP over HTTP by default.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, version: str, log: Log, exporter: "SpanExporter | None" = None) -> None:
        need("opentelemetry.sdk", "otel")
        need("opentelemetry.exporter.otlp.proto.http", "otel")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [LogHandler(log)], False
        name = os.environ.get("OTEL_SERVICE_NAME", "nsfse")
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name, "service.version": version}), shutdown_on_exit=False
        )
        self._processor = BatchSpanProcessor(exporter or OTLPSpanExporter())
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("nsfse", version)

    def record(self, record: RequestLog, method: str, headers: Headers, started_ns: int) -> None:
        """Make the spans of a request that is done; it began `started_ns` after the epoch."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._tracer.start_span(
            f"{method} {record.route}",
            TraceContextTextMapPropagator().extract(headers),
            SpanKind.SERVER,
            _attributes(record, method),
            start_time=started_ns,
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        inside, at, stages = set_span_in_context(span), started_ns, record.fields.get("stages_ms")
        if isinstance(stages, dict):
            for stage in _STAGES:
                part = self._tracer.start_span(stage, inside, start_time=at)
                at += int(_NANOSECONDS * stages.get(stage, 0.0))
                part.end(at)
        span.end()

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._processor.force_flush(_FLUSH_MS)
        self._provider.shutdown()


class TracingMiddleware(HTTPMiddleware):
    """Makes the spans of each request when it is answered."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        super().__init__(app)
        self._tracing = tracing

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note when the request began, and record it when it is done."""
        started_ns = time.time_ns()
        try:
            await self.app(scope, receive, send)
        finally:
            self._tracing.record(scope[SCOPE_KEY], scope["method"], Headers(scope=scope), started_ns)


def _attributes(record: RequestLog, method: str) -> dict[str, Any]:
    """Return attributes by OpenTelemetry's names (semantic conventions for HTTP), and the request's id."""
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "nsfse.request_id": record.id,
    }
    if record.error:
        attributes["error.type"] = record.error
    for name in ("gallery", "batch", "queries", "inputs"):
        if name in record.fields:
            attributes[f"nsfse.{name}"] = record.fields[name]
    return attributes
