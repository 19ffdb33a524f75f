"""What stands before every route: who may ask, what a body may weigh, and what goes with every reply.

Everything is decided by the head of a request: a body is not read before.
"""

import asyncio
import base64
import binascii
import hmac
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nsfse_runtime.server.errors import ErrorReply, Failure, Refused, refusal_of
from nsfse_runtime.server.queue import Gone
from nsfse_runtime.server.settings import BODY_BYTES, MOST_REQUESTS, Settings
from nsfse_runtime.server.telemetry import Log, Metrics

_OPEN = ("/healthz", "/readyz")
_READS = ("GET", "HEAD")
_SMALL_BODY = 65_536
_LINGER_SECONDS = 2.0
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE | re.ASCII)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


class Guard:
    """The application around the routes."""

    def __init__(
        self, routes: ASGIApp, settings: Settings, metrics: Metrics, log: Log, told: Callable[[str], str]
    ) -> None:
        """`told` makes a message fit for strangers."""
        self._routes, self._settings, self._metrics, self._log, self._told = routes, settings, metrics, log, told
        self._hosts = settings.hosts
        self._token = settings.token.encode() if settings.token is not None else None
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; what has no HTTP, the lifespan, passes."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        request = _Request(scope, receive, send)
        scope["nsfse"] = request.notes
        scope["app"] = self  # so that the router raises what it refuses, and does not answer in its own words
        self._at_work += 1
        try:
            self._check(request)
            await self._routes(scope, request.receive, request.send)
        except (ClientDisconnect, Gone):
            request.status = request.status or 499
        except Exception as error:
            await self._refuse(request, error)
        finally:
            self._at_work -= 1
            self._tell(request)

    def _check(self, request: "_Request") -> None:
        """Raise Refused for a request that may not be made."""
        headers = request.headers
        hosts = headers.getlist("host")
        name = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if name is None or name[1].removesuffix(".").strip("[]").lower() not in self._hosts:
            raise Refused(421, "host", "this server is not called by that name; start it with --allow-host NAME")
        if self._token is not None and request.path not in _OPEN and not self._knows_token(headers):
            raise Refused(401, "token", "give the server's token as a bearer token, or as a password")
        origin = headers.get("origin") if request.method not in _READS else None
        if origin is not None and origin.lower().partition("://")[2] != hosts[0].lower():
            raise Refused(403, "origin", "another site may not ask this of the server; a proxy must pass Host on")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > BODY_BYTES:
            raise Refused(413, "too_large", f"the body is over the limit of {BODY_BYTES / 1e6:.0f} MB")
        if request.method not in _READS and headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refused(415, "content_type", "send the body as it is, without Content-Encoding")
        if self._at_work > MOST_REQUESTS and request.path not in _OPEN:
            self._metrics.refused.labels("full").inc()
            raise Refused(503, "overloaded", "too many requests are at work; try again", 1)

    def _knows_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        assert self._token is not None  # _check asks only then
        return hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)

    async def _refuse(self, request: "_Request", error: Exception) -> None:
        refused = refusal_of(error) or _of_http(error)
        if refused is None:
            trace = "".join(traceback.format_exception(error))
            self._log("bug", "error", request_id=request.id, route=request.route, traceback=trace)
            refused = Refused(500, "internal", "the server failed; its log says how, under this request_id")
        request.kind = refused.kind
        if request.status:  # half a reply is out: there is nothing to add
            return
        reply = ErrorReply(Failure(refused.kind, self._told(refused.message), request.id))
        headers = MutableHeaders({"content-type": "application/json"})
        if refused.retry_after is not None:
            headers["retry-after"] = str(refused.retry_after)
        if refused.status == 401:
            # A browser then asks for it, and sends it with the page's images as well.
            headers["www-authenticate"] = 'Basic realm="nsfse: any name, the token as password", charset="UTF-8"'
        if isinstance(error, HTTPException) and error.headers:
            headers.update(error.headers)
        await request.reply(refused.status, headers, msgspec.json.encode(reply))

    def _tell(self, request: "_Request") -> None:
        milliseconds = self._metrics.count(request.route, request.status, request.since)
        facts: dict[str, Any] = {"method": request.method, "route": request.route, "status": request.status}
        self._log("request", request_id=request.id, **facts, ms=milliseconds, error=request.kind, **request.notes.facts)


class Notes:
    """What a route adds to a request's line in the log; `id` is the request's."""

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.route = "none"
        self.facts: dict[str, object] = {}


class _Request:
    """One request on its way through: its head, how much of its body has come, and what has been sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers, self.path, self.method = Headers(scope=scope), scope["path"], scope["method"]
        given = self.headers.get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.notes = Notes(self.id)
        self.since, self.status = perf_counter(), 0
        self.kind: str | None = None
        self._receive, self._send, self._read, self._whole = receive, send, 0, False

    @property
    def route(self) -> str:
        return self.notes.route

    @property
    def _left(self) -> bool:
        """Tell whether more of the body is still to come than is worth reading for the next request."""
        length = self.headers.get("content-length", "")
        large = "transfer-encoding" in self.headers or not length.isdigit() or int(length) > _SMALL_BODY
        return large and not self._whole and ("transfer-encoding" in self.headers or bool(length))

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._read > BODY_BYTES:
                raise Refused(413, "too_large", f"the body is over the limit of {BODY_BYTES / 1e6:.0f} MB")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.id
            if self._left:
                headers["connection"] = "close"
        await self._send(message)

    async def reply(self, status: int, headers: MutableHeaders, body: bytes) -> None:
        """Send a whole reply; what is left of a large body is then read for a while, or the client would not see it."""
        headers["content-length"] = str(len(body))
        left = self._left
        await self.send({"type": "http.response.start", "status": status, "headers": headers.raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": left})
        if left:
            await _drained(self._receive)
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drained(receive: Callable[[], Awaitable[Message]]) -> None:
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


def _of_http(error: Exception) -> Refused | None:
    """Return what the router says: no such route, or not by that method."""
    if not isinstance(error, HTTPException):
        return None
    kind = {404: "not_found", 405: "method"}.get(error.status_code, "usage")
    message = {404: "there is nothing here; GET /openapi.json lists the routes", 405: "this route has other methods"}
    return Refused(error.status_code, kind, message.get(error.status_code, str(error.detail)))
