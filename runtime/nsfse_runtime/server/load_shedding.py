"""Rejects requests from their head alone while the server is overloaded.

This comes after the checks of host and token: a client without access learns nothing of the load.
"""

import asyncio
from collections import Counter
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nsfse_runtime.server.access import HEALTH_PATHS
from nsfse_runtime.server.errors import HTTPError
from nsfse_runtime.server.middleware import CheckMiddleware, HTTPMiddleware
from nsfse_runtime.server.queue import QueryQueue
from nsfse_runtime.server.settings import MAX_BODY_BYTES, MAX_CLIENT_BYTES, MAX_CLIENT_REQUESTS, refusal_delay
from nsfse_runtime.server.telemetry import SCOPE_KEY, Metrics


class ConcurrencyLimitMiddleware(HTTPMiddleware):
    """Lets `limit` requests in at once, those that still send their body among them; health checks always."""

    def __init__(self, app: ASGIApp, limit: int, metrics: Metrics) -> None:
        super().__init__(app)
        self._limit, self._metrics = limit, metrics
        self._active = 0

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise HTTPError where there are too many."""
        if self._active >= self._limit and scope["path"] not in HEALTH_PATHS:
            self._metrics.refused.labels("full").inc()
            raise HTTPError(503, "overloaded", "too many requests at once; try again", 1)
        self._active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._active -= 1


class ClientLimitMiddleware(HTTPMiddleware):
    """Bounds the requests of one address that are at work, health checks apart, and the bytes of their bodies."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics
        self._requests, self._bytes = Counter[str](), Counter[str]()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise HTTPError where its address has too many."""
        if scope["path"] in HEALTH_PATHS:
            await self.app(scope, receive, send)
            return
        client, size = client_address(scope), _declared_bytes(Headers(scope=scope))
        if self._requests[client] >= MAX_CLIENT_REQUESTS or self._bytes[client] + size > MAX_CLIENT_BYTES:
            self._metrics.refused.labels("client").inc()
            await asyncio.sleep(refusal_delay())
            raise HTTPError(429, "overloaded", "this address has too many requests; wait for their replies", 1)
        self._requests[client] += 1
        self._bytes[client] += size
        try:
            await self.app(scope, receive, send)
        finally:
            self._requests -= Counter({client: 1})
            self._bytes -= Counter({client: size})


def _declared_bytes(headers: Headers) -> int:
    """Return how large a body is said to be, at most."""
    return MAX_BODY_BYTES if "transfer-encoding" in headers else int(headers.get("content-length", "0"))


class LoadSheddingMiddleware(CheckMiddleware):
    """Rejects queries while the queue has no place for them, before their body is read."""

    def __init__(self, app: ASGIApp, queue: QueryQueue, paths: Collection[str]) -> None:
        super().__init__(app)
        self._queue, self._paths = queue, paths

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPError for a query that finds the queue full."""
        if scope["method"] == "POST" and scope["path"] in self._paths:
            scope[SCOPE_KEY].route = scope["path"]
            self._queue.check(client_address(scope))


def client_address(scope: Scope) -> str:
    """Return the address a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""
