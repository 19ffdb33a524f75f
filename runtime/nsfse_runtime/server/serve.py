"""The server on its socket: uvicorn, signals and a graceful stop."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from nsfse_runtime.errors import UsageError
from nsfse_runtime.server.app import build_app
from nsfse_runtime.server.connections import check_file_limit, connection_class
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.settings import Settings
from nsfse_runtime.server.telemetry import LogHandler

_BACKLOG = 512
# asyncio accepts as many connections in a row as its backlog; other requests wait meanwhile.
_ACCEPTED_IN_A_ROW = 1
# A query sent just before the signal is still on its way: connections that look idle are closed only after so long.
_ARRIVING_SECONDS = 0.2
_LOG_SECONDS = 1.0


def listen(settings: Settings) -> socket.socket:
    """Return the socket that a server of `settings` listens on.

    Raises UsageError where the address is not free, or the process may open too few files.
    """
    settings.check()
    check_file_limit()
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # from here on a client waits instead of being refused
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"nsfse cannot listen on {host}, port {port}: {reason}; choose others with --host and --port"
        raise UsageError(message) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of the page."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(services: Services, listener: socket.socket) -> None:
    """Serve until a signal comes. Raises the error that prevented the galleries from being opened."""
    server = create_server(services)
    services.on_ready = freeze_gc
    services.log("listening", url=url_of(listener))
    server.run([listener])
    if services.tracing:
        services.tracing.close()
    if services.failure is None:
        services.log("stopped")
    services.log.flush(_LOG_SECONDS)
    if services.hung:
        os._exit(0)  # Python would wait for the thread that does not end
    if services.failure is not None:
        raise services.failure


def freeze_gc() -> None:
    """Exempt all present objects from garbage collection: a full one held up every request for 80 ms."""
    gc.collect()
    gc.freeze()


def create_server(services: Services) -> "Server":
    """Return the server of `services`; its `serve([socket])` is a coroutine."""
    library = logging.getLogger("uvicorn")
    library.handlers, library.propagate = [LogHandler(services.log)], False
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the reply says what is wrong with a form
    config = uvicorn.Config(
        build_app(services),
        http=connection_class(services.settings.per_client > 0),
        ws="none",
        backlog=_ACCEPTED_IN_A_ROW,
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(services.settings.deadline),
    )
    return Server(config, services)


class Server(uvicorn.Server):
    """Stops at the first signal when all accepted requests are answered, at the second at once."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        services.on_failure = self._stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, one at a time, from the whole queue of the system."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that stop a server. Unlike uvicorn's, they are not raised again when it has stopped."""
        loop = asyncio.get_running_loop()
        previous: dict[int, Any] = {}
        try:
            for number in map(int, (signal.SIGINT, signal.SIGTERM)):
                previous[number] = signal.signal(number, lambda received, _: self._signalled(loop, received))
            if hang_up := getattr(signal, "SIGHUP", None):  # not on Windows
                ignored = partial(self._services.log, "ignored", signal="SIGHUP")
                previous[hang_up] = signal.signal(hang_up, lambda *_: loop.call_soon_threadsafe(ignored))
        except ValueError:  # not in the main thread, where alone signals arrive
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _signalled(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if self._services.stopping:
            os._exit(128 + number)
        self._services.stopping = True
        loop.call_soon_threadsafe(self._begin_stop)

    def _begin_stop(self) -> None:
        delay = self._services.settings.shutdown_delay
        self._services.log("stopping", shutdown_delay=delay or None)
        asyncio.get_running_loop().call_later(max(delay, _ARRIVING_SECONDS), self._stop)

    def _stop(self) -> None:
        self.should_exit = True
