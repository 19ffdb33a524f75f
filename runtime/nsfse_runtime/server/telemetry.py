"""What an operator sees: Prometheus metrics and one line of JSON on stderr for each request.

Neither holds a token, a text, an image's name or an address: a line is found by its request id.
"""

import json
import logging
import sys
import time
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32)
MEDIA_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("nsfse_requests", "By route and status.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "nsfse_request_seconds", "From head to reply.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("nsfse_queue_length", "Queries accepted and not yet answered.", registry=registry)
        self.batches = Histogram("nsfse_batch_size", "Queries answered at a time.", buckets=_SIZES, registry=registry)
        self.stages = Histogram(
            "nsfse_stage_seconds", "Parts of a query.", ("stage",), buckets=_SECONDS, registry=registry
        )
        self.refused = Counter(
            "nsfse_refused",
            "Not answered: full, client, expired, disconnected.",
            ("reason",),
            registry=registry,
        )
        self.images = Gauge("nsfse_images", "Images by gallery.", ("gallery",), registry=registry)
        self.ready = Gauge("nsfse_ready", "1 while queries are answered.", registry=registry)
        self.lost = Gauge("nsfse_log_lines_lost", "Log lines that could not be written.", registry=registry)
        for reason in ("full", "client", "expired", "disconnected"):
            self.refused.labels(reason)

    def count(self, route: str, status: int, since: float) -> float:
        """Count a request that was answered just now, and came at `since` by perf_counter; return its milliseconds."""
        seconds = time.perf_counter() - since
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        return round(1000 * seconds, 1)

    def page(self) -> bytes:
        """Return all of them in Prometheus's text form."""
        return generate_latest(self._registry)


class Log:
    """Writes one JSON object a line; `lost` are those that could not be written, which refuses no request."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.lost = 0

    def __call__(self, event: str, level: str = "info", /, **facts: object) -> None:
        """Write `event` with its facts; what is None is left out."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event, **{k: v for k, v in facts.items() if v is not None}}
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError:  # a full disk, or a pipe whose reader has gone
            self.lost += 1


class LogHandler(logging.Handler):
    """Takes what libraries log into the same lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of another library."""
        error = record.exc_info[1] if record.exc_info else None
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info and error else None
        self._log(record.name, record.levelname.lower(), message=record.getMessage(), traceback=trace)
