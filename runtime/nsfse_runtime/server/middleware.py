"""Pure ASGI middleware, one duty a class. app.py composes them; access.py and load_shedding.py have more.

All decisions are made from the head of a request, before its body is read.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsfse_runtime.server.errors import HTTPError, new_request_id, too_large
from nsfse_runtime.server.telemetry import SCOPE_KEY, Log, Metrics, RequestLog

READ_METHODS = ("GET", "HEAD")
# A larger body that was not read is not worth keeping the connection for.
_SMALL_BODY_BYTES = 65_536
_DRAIN_SECONDS = 2.0
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class HTTPMiddleware(ABC):
    """Base of the middleware for HTTP requests; the lifespan passes by."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of HTTP, and pass on all else."""
        await (self.handle if scope["type"] == "http" else self.app)(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to `app`, or reply."""


class CheckMiddleware(HTTPMiddleware):
    """Base of middleware that only checks the head of a request."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the head and pass the request on."""
        self.check(scope, Headers(scope=scope))
        await self.app(scope, receive, send)

    @abstractmethod
    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a request that is not allowed."""


class RequestIdMiddleware(HTTPMiddleware):
    """Gives a request its id, the client's own where it is a plain one, and sends it with the reply."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the id in the scope and in the reply."""
        client_id = Headers(scope=scope).get("x-request-id", "")
        record = RequestLog(client_id if _REQUEST_ID.fullmatch(client_id) else new_request_id())
        scope[SCOPE_KEY] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        await self.app(scope, receive, send_with_id)


class AccessLogMiddleware(HTTPMiddleware):
    """Logs and counts each request when it is answered."""

    def __init__(self, app: ASGIApp, log: Log, metrics: Metrics, clock: Callable[[], float]) -> None:
        super().__init__(app)
        self._log, self._metrics, self._clock = log, metrics, clock

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log the request when it is done."""
        record: RequestLog = scope[SCOPE_KEY]
        started_at = self._clock()

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self._write(record, scope["method"], self._clock() - started_at)

    def _write(self, record: RequestLog, method: str, seconds: float) -> None:
        self._metrics.count_request(record.route, record.status, seconds)
        self._log(
            "request",
            request_id=record.id,
            method=method,
            route=record.route,
            status=record.status,
            ms=round(1000 * seconds, 1),
            error=record.error,
            **record.fields,
        )


class SecurityHeadersMiddleware(HTTPMiddleware):
    """Adds the security headers to every reply that does not set its own."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to the reply."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class DrainBodyMiddleware(HTTPMiddleware):
    """Closes the connection after a reply that leaves a large body unread, and reads on for a while before.

    A client that is still sending when the connection closes gets a reset, and would not see the reply.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply, then read what is left of a large body."""
        if not _has_large_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        complete = False

        async def receive_and_note() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or (message["type"] == "http.request" and not message.get("more_body", False))
            return message

        async def send_and_drain(message: Message) -> None:
            if message["type"] == "http.response.start" and not complete:
                MutableHeaders(scope=message)["connection"] = "close"
            elif message["type"] == "http.response.body" and not message.get("more_body", False) and not complete:
                await send({**message, "more_body": True})
                await _drain(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self.app(scope, receive_and_note, send_and_drain)


def _has_large_body(headers: Headers) -> bool:
    length = headers.get("content-length", "0")
    return "transfer-encoding" in headers or not length.isdigit() or int(length) > _SMALL_BODY_BYTES


async def _drain(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


class PrefixMiddleware(HTTPMiddleware):
    """Takes a proxy's prefix off the path, where the proxy has not, and leads the bare prefix to the page."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        super().__init__(app)
        self._prefix = prefix

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on by the path that a route has."""
        path: str = scope["path"]
        if path == self._prefix:
            await RedirectResponse(f"{self._prefix}/")(scope, receive, send)
            return
        if path.startswith(f"{self._prefix}/"):
            scope = {**scope, "path": path.removeprefix(self._prefix)}
        await self.app(scope, receive, send)


class BodyLimitMiddleware(HTTPMiddleware):
    """Rejects a body of more than `max_bytes`: by its declared length, or when so much has come."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        super().__init__(app)
        self._max_bytes = max_bytes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on no more than the limit."""
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self._max_bytes:
            raise too_large("the body", self._max_bytes)
        received_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise too_large("the body", self._max_bytes)
            return message

        await self.app(scope, receive_within_limit, send)


class BodySpeedMiddleware(HTTPMiddleware):
    """Gives up a body that comes slower than `rate` bytes a second, after `grace` seconds."""

    def __init__(self, app: ASGIApp, rate: float, grace: float) -> None:
        super().__init__(app)
        self._rate, self._grace = rate, grace

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the parts of a body that come in time."""
        due = asyncio.get_running_loop().time() + self._grace
        complete = False

        async def receive_in_time() -> Message:
            nonlocal due, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise HTTPError(408, "slow", f"the body came slower than {self._rate / 1000:g} kB/s") from None
            due += len(message.get("body", b"")) / self._rate
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)


class FramingMiddleware(CheckMiddleware):
    """Rejects a body whose length is given twice: a proxy may believe the other one."""

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a request with both Content-Length and Transfer-Encoding."""
        if "content-length" in headers and "transfer-encoding" in headers:
            raise HTTPError(400, "usage", "send Content-Length or Transfer-Encoding, not both")


class PlainBodyMiddleware(CheckMiddleware):
    """Rejects a compressed body: its size would not be known before it is decompressed."""

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a body with a Content-Encoding."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if scope["method"] not in READ_METHODS and encoding != "identity":
            raise HTTPError(415, "content_type", "compressed bodies are not supported; omit Content-Encoding")
