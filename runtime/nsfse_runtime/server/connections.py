"""Connections: no more than the process has files for, and none that keeps the server waiting for a request."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, ClassVar

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nsfse_runtime.server.errors import ErrorBody, ErrorReply, new_request_id
from nsfse_runtime.server.middleware import HTTPMiddleware

HEAD_SECONDS = 10.0
# Connections take what files the process may open but for these, which images and galleries need.
_RESERVED_FILES, _MAX_FILES = 256, 8192


@cache
def max_connections() -> int:
    """Return how many connections there may be, and raise the process's file limit as far as the system lets it."""
    if sys.platform == "win32":
        return _MAX_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return (_MAX_FILES if soft == resource.RLIM_INFINITY else min(soft, _MAX_FILES)) - _RESERVED_FILES


class Connection(H11Protocol):
    """A connection that must send the whole head of a request in time.

    The timer runs from the start, and again from each reply on. HeadTimeoutMiddleware stops it. Only what uvicorn
    hands to the application is used here, not the state of its parser.
    """

    open_connections: ClassVar[set["Connection"]]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], **options: Any) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, **options)
        self._socket: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active_requests = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer, or close one connection too many."""
        super().connection_made(transport)
        self._socket = transport
        if len(self.open_connections) >= max_connections():
            transport.abort()
            return
        self.open_connections.add(self)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        self._socket = None
        self.open_connections.discard(self)
        super().connection_lost(exc)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Stop the timer while a request is being answered."""
        self._active_requests += 1
        self._stop_timer()
        try:
            yield
        finally:
            self._active_requests -= 1
            if not self._active_requests:
                self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Reply to what is not HTTP as to all bad requests: with JSON."""
        body = msgspec.json.encode(ErrorReply(ErrorBody("usage", msg, new_request_id())))
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        if self._socket is not None:
            self._socket.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self._socket.close()

    def _start_timer(self) -> None:
        if self._socket is not None:
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._socket.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connection_class() -> type[Connection]:
    """Return a class of connections that are counted together: those of one server."""
    return type("ServerConnection", (Connection,), {"open_connections": set()})


class HeadTimeoutMiddleware(HTTPMiddleware):
    """Informs a Connection while a request of it is answered; other servers' connections have no such timer."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the timer of its connection stopped."""
        connection = scope.get("state", {}).get("connection")
        with connection.request() if isinstance(connection, Connection) else nullcontext():
            await self.app(scope, receive, send)
