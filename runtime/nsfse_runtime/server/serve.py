"""A service on its socket: signals, a graceful stop, and connections that may not dawdle."""

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import h11
import msgspec
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nsfse_runtime.errors import UsageError
from nsfse_runtime.server.app import Service
from nsfse_runtime.server.errors import ErrorReply, Failure
from nsfse_runtime.server.load_shedding import Shedding
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import LogHandler

_HEAD_SECONDS = 10.0
# Connections take what files the process may open but for these, which images and galleries need.
_OTHER_FILES, _MOST_FILES = 256, 8192
_BACKLOG = 512
# A query sent just before the signal is still on its way: connections that look idle may be closed only after so long.
_ARRIVING_SECONDS = 0.2


def listen(settings: Settings) -> socket.socket:
    """Return the socket that a server of `settings` listens on. Raises UsageError where the address cannot be had."""
    settings.check()
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # from here on a client waits, and is not turned away
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"nsfse cannot listen on {host}, port {port}: {why}; choose others with --host and --port"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return where the page is."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal says stop. Raises what kept the galleries from being opened."""
    server = make_server(service)
    service.on_ready = _settle
    service.log("listening", url=url_of(listener))
    server.run([listener])
    if service.failure is not None:
        raise service.failure
    service.log("stopped")


def _settle() -> None:
    """Count what is there now as there to stay: a full garbage collection kept every request waiting for 80 ms."""
    gc.collect()
    gc.freeze()


def make_server(service: Service) -> "Server":
    """Return the server of `service`; its `serve([socket])` is a coroutine."""
    library = logging.getLogger("uvicorn")
    library.handlers, library.propagate = [LogHandler(service.log)], False
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is wrong with a form is told to who sent it
    shedding = Shedding(service.waiting, service.metrics, service.log)
    config = uvicorn.Config(
        service.app,
        http=type("Protocol", (_Protocol,), {"shedding": shedding}),
        ws="none",
        backlog=_BACKLOG,
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(service.settings.deadline),
    )
    return Server(config, service)


@cache
def most_connections() -> int:
    """Return how many connections there may be; the process is first allowed as many files as the system lets it."""
    if sys.platform == "win32":
        return _MOST_FILES
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return (_MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)) - _OTHER_FILES


class Server(uvicorn.Server):
    """Stops at the first signal when all that was accepted is answered, at the second at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        service.on_failure = self._stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that stop a server. Unlike uvicorn's, they are not raised again when it has stopped."""
        loop = asyncio.get_running_loop()
        before: dict[int, Any] = {}
        try:
            for number in map(int, (signal.SIGINT, signal.SIGTERM)):
                before[number] = signal.signal(number, lambda got, _: self._signalled(loop, got))
        except ValueError:  # not in the main thread: who runs it there stops it there
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if self._service.stopping:
            os._exit(128 + number)
        self._service.stopping = True
        loop.call_soon_threadsafe(self._begin_stop)

    def _begin_stop(self) -> None:
        self._service.log("stopping", drain_seconds=self._service.settings.drain or None)
        asyncio.get_running_loop().call_later(max(self._service.settings.drain, _ARRIVING_SECONDS), self._stop)

    def _stop(self) -> None:
        self.should_exit = True


class _Protocol(H11Protocol):
    """A connection whose requests must have their whole head within a time; each one too many is closed.

    While the queue is full, queries are refused by `shedding`, and what parses requests never sees them.
    """

    shedding: Shedding
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._between_requests and (reply := self.shedding.reply(self.client[0] if self.client else "", data)):
            self.transport.write(reply)
            self._unset_keepalive_if_required()
            self._head_came()
            self._await_head()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._head_came()

    @property
    def _between_requests(self) -> bool:
        idle = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        return idle and not self.conn.trailing_data[0] and not self.flow.write_paused

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of all refusals."""
        body = msgspec.json.encode(ErrorReply(Failure("usage", msg, secrets.token_hex(8))))
        headers = [("content-type", "application/json"), ("connection", "close"), ("content-length", str(len(body)))]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()
