"""Connections: no more than the process has files for, few of one address, and none that keeps the server waiting."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any, ClassVar

import msgspec
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from nsfse_runtime.errors import UsageError
from nsfse_runtime.server.errors import ErrorBody, ErrorReply, new_request_id
from nsfse_runtime.server.middleware import HTTPMiddleware
from nsfse_runtime.server.settings import MAX_CLIENT_CONNECTIONS, refusal_delay

HEAD_SECONDS = 10.0
# After so long a client that does not read its replies is disconnected.
WRITE_SECONDS = 10.0
# So many requests of a connection that came at once are answered in a row: others would wait for more.
MAX_PIPELINED = 8
# Connections take what files the process may open but for these, which images and galleries need.
_RESERVED_FILES, _MAX_FILES, _MIN_CONNECTIONS = 256, 8192, 64


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


def check_file_limit() -> None:
    """Raise UsageError where the process may open too few files to serve."""
    if max_connections() < _MIN_CONNECTIONS:
        raise UsageError(
            f"this process may open {max_connections() + _RESERVED_FILES} files, and a server needs "
            f"{_MIN_CONNECTIONS + _RESERVED_FILES}; start it after: ulimit -n {_MIN_CONNECTIONS + _RESERVED_FILES}"
        )


class Connection(H11Protocol):
    """A connection that must send the whole head of a request in time, and read what it gets.

    The timer of the head runs from the start, and again from each reply on. HeadTimeoutMiddleware stops it. Only what
    uvicorn hands to the application is used here, not the state of its parser.
    """

    open_connections: ClassVar[set["Connection"]]
    clients: ClassVar[Counter[str]]
    max_per_client: ClassVar[int]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], **options: Any) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, **options)
        self._socket: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._address = ""
        self._active_requests = 0
        self._replies_in_a_row = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer, or close one connection too many."""
        super().connection_made(transport)
        self._socket = transport
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        if len(self.open_connections) >= max_connections() or self.clients[self._address] >= 2 * self.max_per_client:
            transport.abort()
            return
        self.open_connections.add(self)
        self.clients[self._address] += 1
        if self.clients[self._address] > self.max_per_client:
            self._refuse_later(transport)
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_timer()
        self.resume_writing()
        self._socket = None
        if self in self.open_connections:
            self.open_connections.discard(self)
            self.clients.subtract([self._address])
            if not self.clients[self._address]:
                del self.clients[self._address]
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Disconnect a client that leaves its replies unread for too long."""
        super().pause_writing()
        if self._socket is not None and self._write_timer is None:
            self._write_timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self._socket.abort)

    def resume_writing(self) -> None:
        """Stop the timer: the client reads."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def data_received(self, data: bytes) -> None:
        """Take what came: requests, or parts of one."""
        self._replies_in_a_row = 0
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Close the connection after the last reply that it gets in a row."""
        self._replies_in_a_row += 1
        if self._replies_in_a_row >= MAX_PIPELINED and self._socket is not None:
            self._socket.close()
        super().on_response_complete()

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
        self._refuse(b"400 Bad Request", "usage", msg)

    def _refuse_later(self, transport: asyncio.Transport) -> None:
        """Refuse an address its connection a while later: one that comes again at once would cost others time."""
        transport.pause_reading()
        message = "this address has too many connections; close some"
        refuse = partial(self._refuse, b"429 Too Many Requests", "overloaded", message)
        asyncio.get_running_loop().call_later(refusal_delay(), refuse)

    def _refuse(self, status: bytes, error_type: str, message: str) -> None:
        body = msgspec.json.encode(ErrorReply(ErrorBody(error_type, message, new_request_id())))
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\n" % status
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


def connection_class(per_client: bool = True) -> type[Connection]:
    """Return a class of connections that are counted together: those of one server.

    `per_client` bounds those of one address.
    """
    most = MAX_CLIENT_CONNECTIONS if per_client else sys.maxsize
    counters = {"open_connections": set(), "clients": Counter(), "max_per_client": most}
    return type("ServerConnection", (Connection,), counters)


class HeadTimeoutMiddleware(HTTPMiddleware):
    """Informs a Connection while a request of it is answered; other servers' connections have no such timer."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the timer of its connection stopped."""
        connection = scope.get("state", {}).get("connection")
        with connection.request() if isinstance(connection, Connection) else nullcontext():
            await self.app(scope, receive, send)
