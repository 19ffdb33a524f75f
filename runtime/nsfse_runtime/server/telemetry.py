"""What an operator sees: Prometheus metrics, and one line of JSON on stderr for each request.

Neither holds a token, a text, an image's name or an address: a line is found by its request id.
"""

import json
import logging
import os
import queue
import sys
import time
from dataclasses import dataclass, field
from threading import Thread
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32)
_REJECTION_REASONS = ("full", "client", "expired", "disconnected")
_MAX_WAITING_LINES = 1000
MEDIA_TYPE = CONTENT_TYPE_LATEST
SCOPE_KEY = "nsfse.request_log"


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("nsfse_requests", "By route and status.", ("route", "status"), registry=registry)
        self.request_seconds = Histogram(
            "nsfse_request_seconds", "From head to reply.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.queue_length = Gauge("nsfse_queue_length", "Queries accepted and not yet answered.", registry=registry)
        self.batch_size = Histogram(
            "nsfse_batch_size", "Queries answered at a time.", buckets=_SIZES, registry=registry
        )
        self.stage_seconds = Histogram(
            "nsfse_stage_seconds", "Parts of a query.", ("stage",), buckets=_SECONDS, registry=registry
        )
        self.refused = Counter(
            "nsfse_refused", "Not answered: full, client, expired, disconnected.", ("reason",), registry=registry
        )
        self.images = Gauge("nsfse_images", "Images by gallery.", ("gallery",), registry=registry)
        self.ready = Gauge("nsfse_ready", "1 while queries are answered.", registry=registry)
        self.log_lines_lost = Gauge("nsfse_log_lines_lost", "Log lines that could not be written.", registry=registry)
        for reason in _REJECTION_REASONS:
            self.refused.labels(reason)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that took `seconds`."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class Log:
    """Writes one JSON object a line, in a thread of its own: a reader that stops holds no request up.

    Lines that cannot be written, or would have to wait behind too many, are counted in `lost`.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._lines = queue.Queue[str](_MAX_WAITING_LINES)
        self._dropped = self._failed = 0
        Thread(target=self._write_all, name="nsfse-log", daemon=True).start()

    @property
    def lost(self) -> int:
        """How many lines were not written."""
        return self._dropped + self._failed

    def __call__(self, event: str, level: str = "info", /, **fields: object) -> None:
        """Write `event` with its fields; those that are None are left out."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event, **{k: v for k, v in fields.items() if v is not None}}
        try:
            self._lines.put_nowait(json.dumps(line) + "\n")
        except queue.Full:
            self._dropped += 1

    def flush(self, seconds: float) -> None:
        """Wait until all lines are written, but no longer than `seconds`."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, seconds)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            try:
                _write(self.stream, line)
            except (OSError, ValueError):  # a full disk, a pipe whose reader has gone, a stream that was closed
                self._failed += 1
            self._lines.task_done()


def _write(stream: TextIO, line: str) -> None:
    """Write to the file of `stream` where it has one: the end of the process waits for the stream's own lock."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream in memory
        stream.write(line)
        stream.flush()
        return
    data = line.encode()
    while data:
        data = data[os.write(descriptor, data) :]


@dataclass(slots=True)
class RequestLog:
    """One request's line in the log: its id, route and outcome, and the `fields` that its handler adds."""

    id: str
    route: str = "none"
    status: int = 0
    error: str | None = None
    fields: dict[str, object] = field(default_factory=dict)


def request_log(request: Request) -> RequestLog:
    """Return the log line that belongs to a request."""
    record: RequestLog = request.scope[SCOPE_KEY]
    return record


class LogHandler(logging.Handler):
    """Writes the warnings of other libraries as lines of the same log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of another library."""
        error = record.exc_info[1] if record.exc_info else None
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info and error else None
        self._log(record.name, record.levelname.lower(), message=record.getMessage(), traceback=trace)
